# mm01_module(name DEPS targets...): src/name as the library mm01_name, its *_test.cc files as the
# program name_test, and the headers without a .cc of their name checked to compile alone
# (all_verify_interface_header_sets; the others are what their .cc includes first: layering_test).
# FOLDER names another folder than src/name; of its files are taken those that match the expression
# ONLY and do not match WITHOUT: so one folder can make two libraries.
#
# With CUDA, *.cu, *_cuda.cc and what lies in folders cuda/ and bench_gpu/ belong to the library, and
# *_cuda_test.cc files are the program name_cuda_test, which needs a GPU: `./check gpu` runs it.
function(mm01_module name)
  cmake_parse_arguments(ARG "" "FOLDER;ONLY;WITHOUT" "DEPS" ${ARGN})
  if(NOT ARG_FOLDER)
    set(ARG_FOLDER ${name})
  endif()
  set(dir ${CMAKE_SOURCE_DIR}/src/${ARG_FOLDER})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${dir}/*.cc)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${dir}/*.h)
  file(GLOB_RECURSE kernels CONFIGURE_DEPENDS ${dir}/*.cu)
  foreach(files sources headers kernels)
    if(ARG_ONLY)
      list(FILTER ${files} INCLUDE REGEX "${ARG_ONLY}")
    endif()
    if(ARG_WITHOUT)
      list(FILTER ${files} EXCLUDE REGEX "${ARG_WITHOUT}")
    endif()
  endforeach()
  set(cuda_only "_cuda\\.(cc|h)$|_cuda_test\\.cc$|/cuda/|/cuda_[a-z_]*\\.(cc|h)$|/bench_gpu/")
  set(cuda_tests)
  if(MM01_HAS_CUDA)
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
  set(alone)
  foreach(header ${headers})
    string(REGEX REPLACE "\\.h$" ".cc" own ${header})
    if(NOT own IN_LIST sources)
      list(APPEND alone ${header})
    endif()
  endforeach()
  list(REMOVE_ITEM headers ${alone})
  target_sources(mm01_${name} ${scope}
    FILE_SET HEADERS BASE_DIRS ${CMAKE_SOURCE_DIR}/src FILES ${headers}
    FILE_SET alone TYPE HEADERS BASE_DIRS ${CMAKE_SOURCE_DIR}/src FILES ${alone})
  set_target_properties(mm01_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON
                                                INTERFACE_HEADER_SETS_TO_VERIFY alone)
  target_include_directories(mm01_${name} ${scope} ${CMAKE_SOURCE_DIR}/src)
  mm01_unity(mm01_${name} "${sources}" "/kernels/.*_cpu\\.cc$|/http\\.cc$|\\.cu$|${cuda_only}")
  target_link_libraries(mm01_${name} ${scope} ${ARG_DEPS})
  # Sanitized, what computes or parses much stays quick enough for its tests.
  set(computes)
  if(MM01_SANITIZE AND ARG_FOLDER MATCHES "^(kernels|io)$")
    set(computes ON)
    target_compile_options(mm01_${name} PRIVATE -O1)
  endif()
  # What computes is in the folders below. Elsewhere -O2 costs a quarter more to compile, and gains a
  # twentieth in the tokenizer and nothing in other places that were measured.
  if(NOT MM01_SANITIZE AND NOT ARG_FOLDER MATCHES "^(base|tensor|device|kernels|comm)$")
    target_compile_options(mm01_${name} PRIVATE -O1)
  endif()
  # Fuzzing follows the branches of what parses; kernels and ranks see no bytes from outside.
  if(MM01_FUZZ AND sources AND NOT ARG_FOLDER MATCHES "^(device|kernels|comm|parallel)$")
    target_compile_options(mm01_${name} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
  if(sources AND NOT computes AND ARG_FOLDER MATCHES
                                  "^(io|model|planner|infer|train|eval|server|cli)$")
    mm01_precompile(mm01_${name} library)
  endif()
  # Only where a source asks, so that the others are the same objects in both kinds of build.
  if(MM01_HAS_CUDA AND ARG_FOLDER MATCHES "^(device|kernels|eval|cli)$")
    target_compile_definitions(mm01_${name} PRIVATE MM01_CUDA)
    target_include_directories(mm01_${name} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  endif()

  set(testing)
  if(ARG_FOLDER STREQUAL "io")
    set(testing mm01_testing_files)
  elseif(ARG_FOLDER STREQUAL "train")
    set(testing mm01_testing_training)
  elseif(ARG_FOLDER MATCHES "^(model|infer|eval)$")
    set(testing mm01_testing_models)
  endif()
  if(MM01_TESTS AND tests)
    add_executable(${name}_test ${tests})
    target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${name}_test PRIVATE ${testing} mm01_${name} GTest::gtest_main)
    target_compile_definitions(${name}_test PRIVATE MM01_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    if(computes OR NOT MM01_SANITIZE)
      target_compile_options(${name}_test PRIVATE -O1)  # compiles in four fifths of the time of -O2
    endif()
    if(NOT computes)
      mm01_precompile(${name}_test test <gtest/gtest.h>)
    endif()
    gtest_discover_tests(${name}_test DISCOVERY_MODE PRE_TEST)
  endif()
  if(MM01_TESTS AND cuda_tests)
    add_executable(${name}_cuda_test ${cuda_tests})
    target_link_libraries(${name}_cuda_test PRIVATE ${testing} mm01_${name} GTest::gtest_main)
    target_compile_definitions(${name}_cuda_test PRIVATE MM01_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  endif()
endfunction()

# With MM01_UNITY, compiles that many sources of a library at once: headers are parsed, and their
# templates compiled, once for all of them. Alone stay those that match the expression `alone`: what
# is compiled for each SIMD target or for CUDA, and Beast's, which is large by itself. So names in
# unnamed namespaces differ within a library. 0 compiles each source alone, which holds it to including
# what it uses.
function(mm01_unity target sources alone)
  if(NOT MM01_UNITY OR NOT sources)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${MM01_UNITY})
  list(FILTER sources INCLUDE REGEX "${alone}")
  if(sources)
    set_source_files_properties(${sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# Has what most sources include parsed once for all targets of a kind, which share their flags: the
# first of them precompiles, the others use what it made. Not for g++ 12 where warnings are errors: it
# warns of copies beyond the end of strings, where there are none, as soon as their headers are
# precompiled. Nor with ccache, which does better without.
function(mm01_precompile target kind)
  if(CCACHE OR (MM01_TESTS AND NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang"))
    return()
  endif()
  get_property(first GLOBAL PROPERTY mm01_precompiled_${kind})
  if(first)
    target_precompile_headers(${target} REUSE_FROM ${first})
  else()
    target_precompile_headers(${target} PRIVATE ${ARGN} <fmt/core.h> <nlohmann/json.hpp> <algorithm>
                              <deque> <filesystem> <functional> <fstream> <map> <memory> <optional>
                              <sstream> <string> <thread> <unordered_map> <vector>)
    set_property(GLOBAL PROPERTY mm01_precompiled_${kind} ${target})
  endif()
endfunction()
