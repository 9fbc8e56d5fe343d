# One GoogleTest program per wing, WING_tests, from every tests/WING/**/*_test.cpp; `label` is cpu, gpu or cupti.
# A file is found by its suite: ctest -R Schedule, or build/cpu/tests/core_tests --gtest_filter='Schedule*'.
function(moescope_add_tests wing label)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${wing}/*_test.cpp)
  add_executable(${wing}_tests ${sources})
  # What is tested is optimised and checked for undefined behaviour; the tests themselves hardly, and for their use of
  # memory alone: that halves what compiling them takes.
  if(MOESCOPE_SANITIZE)
    set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=undefined -O0)
    target_compile_definitions(${wing}_tests PRIVATE MOESCOPE_SANITIZED)
  else()
    set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_OPTIONS -O1)
  endif()
  target_link_libraries(${wing}_tests PRIVATE moescope::test_support moescope::core moescope::reference
                        moescope::profiler nlohmann_json::nlohmann_json GTest::gtest GTest::gtest_main)
  # Tests run side by side: one thread each unless they ask for more, and none that spins (CMakePresets.json).
  gtest_discover_tests(${wing}_tests DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${label}" TIMEOUT 900
      ENVIRONMENT "OMP_NUM_THREADS=1")
endfunction()
