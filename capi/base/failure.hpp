#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "moescope.h"

namespace moescope::capi {

/// What a function of moescope.h reports: a code and its text. Caught by guarded(), never seen outside.
class Failure : public std::exception {
 public:
  Failure(moescope_status code, std::string text) : code_(code), text_(std::move(text)) {}
  moescope_status code() const { return code_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  moescope_status code_;
  std::string text_;
};

/// "name: value why", as MOESCOPE_ERROR_VALUE.
[[noreturn]] void refuse(const std::string& name, const std::string& value, const std::string& why);

/// Keeps the text for moescope_last_error() of this thread, cut to what its buffer holds; returns `code`.
moescope_status keep_error(moescope_status code, const char* text) noexcept;

/// Runs a function of the interface: no exception leaves it.
template <class Body>
moescope_status guarded(const Body& body) noexcept {
  try {
    body();
    return MOESCOPE_OK;
  } catch (const Failure& failure) {
    return keep_error(failure.code(), failure.what());
  } catch (const std::bad_alloc&) {
    return keep_error(MOESCOPE_ERROR_MEMORY, "the system has no memory left");
  } catch (const std::exception& error) {
    return keep_error(MOESCOPE_ERROR_INTERNAL, error.what());
  } catch (...) {
    return keep_error(MOESCOPE_ERROR_INTERNAL, "an exception of an unknown kind");
  }
}

}  // namespace moescope::capi
