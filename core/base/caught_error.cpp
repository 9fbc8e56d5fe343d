#include "core/base/caught_error.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <ios>
#include <new>
#include <stdexcept>
#include <system_error>

namespace moescope {
namespace {

/// error.what() says what the library did, which tells a user nothing unless no file is known.
std::string file_message(const std::filesystem::filesystem_error& error) {
  std::string files = error.path1().string();
  if (!error.path2().empty()) {
    files += fmt::format("{}{}", files.empty() ? "" : ", ", error.path2().string());
  }
  return files.empty() ? error.what() : fmt::format("{}: {}", files, error.code().message());
}

bool lacks_resources(const std::error_code& code) {
  return code == std::errc::not_enough_memory || code == std::errc::resource_unavailable_try_again;
}

}  // namespace

CaughtError caught_error() {
  try {
    throw;
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::filesystem::filesystem_error& error) {
    return {ExitCode::kBadFile, file_message(error)};
  } catch (const std::ios_base::failure& error) {
    return {ExitCode::kBadFile, fmt::format("a file cannot be read or written: {}", error.what())};
  } catch (const std::system_error& error) {
    return {lacks_resources(error.code()) ? ExitCode::kOutOfMemory : ExitCode::kBadFile, error.what()};
  } catch (const std::bad_alloc&) {
    return {ExitCode::kOutOfMemory, "out of memory"};
  } catch (const std::length_error&) {  // of a container longer than any memory
    return {ExitCode::kOutOfMemory, "out of memory"};
  } catch (const std::exception& error) {
    return {ExitCode::kInternal, fmt::format("internal error (please report): {}", error.what())};
  } catch (...) {
    return {ExitCode::kInternal, "internal error (please report): an exception of no known kind"};
  }
}

}  // namespace moescope
