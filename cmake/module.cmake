# mm01_module(name DEPS targets...): src/name as the library mm01_name, its *_test.cc files as the
# program name_test, and its headers checked to compile alone (all_verify_interface_header_sets).
#
# With CUDA, *.cu, *_cuda.cc and what lies in folders cuda/ and bench_gpu/ belong to the library, and
# *_cuda_test.cc files are the program name_cuda_test, which needs a GPU: `./check gpu` runs it.
function(mm01_module name)
  cmake_parse_arguments(ARG "" "" "DEPS" ${ARGN})
  set(dir ${CMAKE_SOURCE_DIR}/src/${name})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${dir}/*.cc)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${dir}/*.h)
  set(cuda_only "_cuda\\.(cc|h)$|_cuda_test\\.cc$|/cuda/|/cuda_[a-z_]*\\.(cc|h)$|/bench_gpu/")
  set(cuda_tests)
  if(MM01_HAS_CUDA)
    file(GLOB_RECURSE kernels CONFIGURE_DEPENDS ${dir}/*.cu)
    set(cuda_tests ${sources})
    list(FILTER cuda_tests INCLUDE REGEX "_cuda_test\\.cc$")
    list(FILTER sources EXCLUDE REGEX "_cuda_test\\.cc$")
    list(APPEND sources ${kernels})
  else()
    list(FILTER sources EXCLUDE REGEX "${cuda_only}")
    list(FILTER headers EXCLUDE REGEX "${cuda_only}")
  endif()
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
  # What most sources of these folders include, parsed once. ccache does better without.
  if(NOT CCACHE AND name MATCHES "^(io|model|planner|infer|eval|cli)$")
    target_precompile_headers(mm01_${name} PRIVATE <fmt/format.h> <nlohmann/json.hpp> <algorithm>
                              <functional> <map> <memory> <optional> <string> <vector>)
  endif()
  # Only where a source asks, so that the others are the same objects in both kinds of build.
  if(MM01_HAS_CUDA AND name MATCHES "^(device|kernels|eval|cli)$")
    target_compile_definitions(mm01_${name} PRIVATE MM01_CUDA)
    target_include_directories(mm01_${name} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  endif()

  if(MM01_TESTS AND tests)
    add_executable(${name}_test ${tests})
    target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${name}_test PRIVATE mm01_${name} GTest::gtest_main)
    target_compile_definitions(${name}_test PRIVATE MM01_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    gtest_discover_tests(${name}_test DISCOVERY_MODE PRE_TEST)
  endif()
  if(MM01_TESTS AND cuda_tests)
    add_executable(${name}_cuda_test ${cuda_tests})
    target_link_libraries(${name}_cuda_test PRIVATE mm01_${name} GTest::gtest_main)
    target_compile_definitions(${name}_cuda_test PRIVATE MM01_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  endif()
endfunction()
