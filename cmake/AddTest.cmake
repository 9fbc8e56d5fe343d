# What is tested is optimised and checked for undefined behaviour; the tests themselves hardly, and for their use of
# memory alone: that halves what compiling them takes.
add_library(moescope_test_options INTERFACE)
if(MOESCOPE_SANITIZE)
  target_compile_options(moescope_test_options INTERFACE -fno-sanitize=undefined -O0)
else()
  target_compile_options(moescope_test_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
endif()

# One GoogleTest program per wing, WING_tests, from every tests/WING/**/*_test.cpp; `label` is cpu, gpu or cupti.
# A file is found by its suite: ctest -R Schedule, or build/cpu/tests/core_tests --gtest_filter='Schedule*'.
function(moescope_add_tests wing label)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${wing}/*_test.cpp)
  add_executable(${wing}_tests ${sources})
  if(NOT wing STREQUAL "kernels")  # whose files say much alike, each of its kernel
    moescope_compile_by_rooms(${wing}_tests)
  endif()
  if(MOESCOPE_SANITIZE)
    target_compile_definitions(${wing}_tests PRIVATE MOESCOPE_SANITIZED)
  endif()
  # moescope_test_options comes last, so that it has the last word.
  target_link_libraries(${wing}_tests PRIVATE moescope::test_support moescope::core moescope::reference
                        moescope::profiler nlohmann_json::nlohmann_json GTest::gtest GTest::gtest_main moescope_test_options)
  # Tests run side by side: one thread each unless they ask for more, and none that spins (CMakePresets.json).
  if(NOT MOESCOPE_SANITIZE)
    gtest_discover_tests(${wing}_tests DISCOVERY_TIMEOUT 60
      PROPERTIES LABELS "${label}" TIMEOUT 900
        ENVIRONMENT "OMP_NUM_THREADS=1")
    return()
  endif()
  # Under sanitizers a process for each test would cost more than most tests: a program runs in a few parts.
  # What holds recorded rows, documents and examples of real size against the code goes minutes through code that
  # small tests run too, and is left to the release build.
  set(aside "Recorded*:*/Recorded*:AnalyticRows.*:ClaimsPage.*:SimulatorDocument.*:Snapshots.*:Guide.*:Diff.*:*/HelpExamples.*")
  string(APPEND aside ":Narrow.EveryCommand*:Check.ComparesBaselineSystems*:Place.StripsWithHot*")
  set(parts 8)
  math(EXPR last "${parts} - 1")
  foreach(part RANGE ${last})
    add_test(NAME ${wing}_tests.${part}_of_${parts} COMMAND ${wing}_tests --gtest_brief=1 --gtest_filter=-${aside}
      --gtest_output=json:${CMAKE_BINARY_DIR}/Testing/${wing}.${part}.json)
    set_tests_properties(${wing}_tests.${part}_of_${parts} PROPERTIES LABELS "${label}" TIMEOUT 1800
      ENVIRONMENT "OMP_NUM_THREADS=1;GTEST_TOTAL_SHARDS=${parts};GTEST_SHARD_INDEX=${part}")
  endforeach()
endfunction()
