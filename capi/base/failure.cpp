#include "capi/base/failure.hpp"

#include <array>
#include <cstdio>

namespace moescope::capi {
namespace {

thread_local std::array<char, 512> last_error{};

}  // namespace

void refuse(const std::string& name, const std::string& value, const std::string& why) {
  throw Failure(MOESCOPE_ERROR_VALUE, name + ": " + value + " " + why);
}

moescope_status keep_error(moescope_status code, const char* text) noexcept {
  std::snprintf(last_error.data(), last_error.size(), "%s", text);
  return code;
}

}  // namespace moescope::capi

const char* moescope_last_error(void) { return moescope::capi::last_error.data(); }

const char* moescope_status_name(moescope_status status) {
  switch (status) {
    case MOESCOPE_OK:
      return "ok";
    case MOESCOPE_ERROR_NULL:
      return "null";
    case MOESCOPE_ERROR_VALUE:
      return "value";
    case MOESCOPE_ERROR_WORKSPACE:
      return "workspace";
    case MOESCOPE_ERROR_UNSUPPORTED:
      return "unsupported";
    case MOESCOPE_ERROR_NOT_BUILT:
      return "not_built";
    case MOESCOPE_ERROR_MEMORY:
      return "memory";
    case MOESCOPE_ERROR_DEVICE:
      return "device";
    case MOESCOPE_ERROR_INTERNAL:
      return "internal";
    default:
      return "unknown";
  }
}
