#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moescope {

/// Process exit codes of `moescope`; docs/reference/exit-codes.md. Only main() turns an error into one.
enum class ExitCode : int {
  kOk = 0,
  kCheckFailed = 1,      ///< a comparison ran and did not hold (check, golden, diff, sweep --baseline)
  kUsage = 2,            ///< the command line does not parse
  kInvalidArgument = 3,  ///< a field has a value that cannot work; nothing was written
  kBadFile = 4,          ///< an input file is missing, truncated or lies; an output cannot be written
  kNoDevice = 5,         ///< a GPU was asked for and there is none that can be used
  kOutOfMemory = 6,      ///< the configuration does not fit; the message says need and have
  kDeviceError = 7,      ///< a CUDA library call failed
  kNoCounters = 8,       ///< hardware counters were asked for and cannot be had
  kInternal = 70,        ///< a bug in moescope: an invariant of its own did not hold
};

/// Base of every error moescope throws. `what()` is one line meant for the user.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// A field has a value that cannot work. Message: "<field> = <value>: <requirement>".
class InvalidArgument : public Error {
 public:
  InvalidArgument(std::string_view field, std::string_view value, std::string_view requirement)
      : Error(ExitCode::kInvalidArgument, fmt::format("{} = {}: {}", field, value, requirement)) {}
};

/// A file is missing, truncated or lies. Message: "<path>: <field>: <what>".
class FileError : public Error {
 public:
  FileError(std::string_view path, std::string_view field, std::string_view what)
      : Error(ExitCode::kBadFile, field.empty() ? fmt::format("{}: {}", path, what)
                                                : fmt::format("{}: {}: {}", path, field, what)) {}
};

/// No usable GPU, or no CUDA backend in this build.
class NoDevice : public Error {
 public:
  explicit NoDevice(std::string_view why)
      : Error(ExitCode::kNoDevice, fmt::format("no usable GPU: {}", why)) {}
};

/// Hardware counters are not permitted, not supported or held by another profiler; `why` says what would
/// permit them.
class CountersUnavailable : public Error {
 public:
  explicit CountersUnavailable(std::string_view why)
      : Error(ExitCode::kNoCounters, fmt::format("no hardware counters: {}", why)) {}
};

/// A configuration does not fit; thrown before anything is allocated.
class OutOfMemory : public Error {
 public:
  OutOfMemory(std::string_view where, std::uint64_t need_bytes, std::uint64_t have_bytes)
      : Error(ExitCode::kOutOfMemory,
              fmt::format("{} needs {} bytes ({:.2f} GiB), {} bytes ({:.2f} GiB) are available", where,
                          need_bytes, gib(need_bytes), have_bytes, gib(have_bytes))) {}

 private:
  static double gib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); }
};

/// An invariant of moescope itself does not hold.
class InternalError : public Error {
 public:
  explicit InternalError(std::string_view what)
      : Error(ExitCode::kInternal, fmt::format("internal error (please report): {}", what)) {}
};

}  // namespace moescope
