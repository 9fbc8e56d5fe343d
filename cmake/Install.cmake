# `cmake --install`: the program with its data, shell completion and manual page, and the libraries with their headers
# as the CMake package `moescope` (moescope::core, moescope::reference, moescope::profiler), and the C interface (moescope::c,
# moescope.h, pkg-config). `cpack -G DEB` packs the same.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moescope)
install(TARGETS moescope RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS moescope_options moescope_core moescope_reference moescope_profiler moescope_c EXPORT moescopeTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${PROJECT_SOURCE_DIR}/capi/include/moescope.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
file(RELATIVE_PATH pkgconfig_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${PROJECT_SOURCE_DIR}/cmake/moescope.pc.in ${PROJECT_BINARY_DIR}/moescope.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/moescope.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
foreach(wing core reference profiler)
  set_target_properties(moescope_${wing} PROPERTIES EXPORT_NAME ${wing})
  # Includes are spelt as here: "core/schedule/schedule.hpp".
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${wing} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/moescope FILES_MATCHING PATTERN "*.hpp")
endforeach()
set_target_properties(moescope_options PROPERTIES EXPORT_NAME options)
install(EXPORT moescopeTargets NAMESPACE moescope:: DESTINATION ${package_dir})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/moescopeConfig.cmake.in ${PROJECT_BINARY_DIR}/moescopeConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/moescopeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/moescopeConfig.cmake ${PROJECT_BINARY_DIR}/moescopeConfigVersion.cmake
  DESTINATION ${package_dir})

install(DIRECTORY ${PROJECT_SOURCE_DIR}/data DESTINATION ${CMAKE_INSTALL_DATADIR}/moescope)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/experiments/configs DESTINATION ${CMAKE_INSTALL_DATADIR}/moescope/experiments)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# Written by the program after it is linked: experiments/CMakeLists.txt.
set(manual ${MOESCOPE_MANUAL_DIR})
install(FILES ${manual}/moescope.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${manual}/moescope DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${manual}/_moescope DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions)
install(FILES ${manual}/moescope.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)

set(CPACK_PACKAGE_NAME moescope)
set(CPACK_PACKAGE_VENDOR "the authors of moescope")
set(CPACK_PACKAGE_CONTACT "the authors of moescope <moescope@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "simulator and profiler of mixture-of-experts layers with atomic experts")
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
# Figures: images by gnuplot, those of a report by Chart.js.
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libjs-chart.js")
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "gnuplot-nox")
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "libfmt-dev, libeigen3-dev, nlohmann-json3-dev, libzip-dev, zlib1g-dev, pkg-config")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
include(CPack)
