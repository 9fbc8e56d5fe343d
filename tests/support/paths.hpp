#pragma once

#include <string>

/// Where this checkout and its program lie. In one compiled file, so that no other depends on the folder.
namespace moescope::test {

std::string source_dir();
/// `relative` ("data/devices") under the checkout.
std::string source_path(const std::string& relative);
/// The program under test.
std::string moescope_binary();

}  // namespace moescope::test
