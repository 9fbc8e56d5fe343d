#include "experiments/options/standard_streams.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <system_error>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"

namespace moescope {
namespace {

[[noreturn]] void fail(const char* what, const char* verb, int error) {
  throw FileError(what, "",
                  fmt::format("cannot be {}{}{}", verb, error == 0 ? "" : ": ",
                              error == 0 ? "" : std::generic_category().message(error)));
}

}  // namespace

void open_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    // The lowest free number is this one: those below are open by now.
    if (::fcntl(descriptor, F_GETFD) == -1 && errno == EBADF && ::open("/dev/null", O_RDWR) != descriptor) {
      fail("/dev/null", "opened", errno);
    }
  }
}

void flush_standard_output() {
  const bool whole = std::cout.good();
  errno = 0;
  std::cout.flush();
  if (!std::cout) {
    fail("standard output", "written", whole ? errno : 0);
  }
  // Network file systems and quotas may say it on closing alone.
  if (const int copy = ::dup(STDOUT_FILENO); copy >= 0 && ::close(copy) != 0 && errno != EINTR) {
    fail("standard output", "written", errno);
  }
}

void print_error(std::string_view message) { std::cerr << "moescope: " << one_line(message) << '\n'; }

}  // namespace moescope
