# mm01_module(name DEPS targets...): src/name as the library mm01_name, its *_test.cc files as the
# program name_test, and its headers checked to compile alone (all_verify_interface_header_sets).
function(mm01_module name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  set(dir ${CMAKE_SOURCE_DIR}/src/${name})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${dir}/*.cc)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${dir}/*.h)
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER sources EXCLUDE REGEX "_test\\.cc$|/main\\.cc$")
  # *-inl.h files are compiled once for each SIMD target and are not meant to stand alone.
  list(FILTER headers EXCLUDE REGEX "-inl\\.h$")

  if(sources)
    add_library(mm01_${name} STATIC ${sources})
    set(scope PUBLIC)
  else()
    add_library(mm01_${name} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_sources(mm01_${name} ${scope} FILE_SET HEADERS BASE_DIRS ${CMAKE_SOURCE_DIR}/src
                                              FILES ${headers})
  set_target_properties(mm01_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  target_include_directories(mm01_${name} ${scope} ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(mm01_${name} ${scope} ${ARG_DEPS})

  if(MM01_TESTS AND tests)
    add_executable(${name}_test ${tests})
    target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${name}_test PRIVATE mm01_${name} GTest::gtest_main)
    target_compile_definitions(${name}_test PRIVATE MM01_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    gtest_discover_tests(${name}_test DISCOVERY_MODE PRE_TEST)
  endif()
endfunction()
