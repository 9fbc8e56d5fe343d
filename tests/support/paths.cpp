#include "tests/support/paths.hpp"

#include "core/base/build_info.hpp"

namespace moescope::test {

std::string source_dir() { return std::string(build_info().source_dir); }

std::string source_path(const std::string& relative) { return source_dir() + "/" + relative; }

std::string moescope_binary() { return MOESCOPE_BINARY; }

}  // namespace moescope::test
