#include "core/base/host_memory.hpp"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// The number that follows `key` in a file of "key value" lines; with an empty key, the file's first word.
std::optional<std::uint64_t> read_number(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) != 0) {
      continue;
    }
    const auto first = line.find_first_of("0123456789", key.size());
    if (first == std::string::npos) {
      return std::nullopt;  // "max": no limit
    }
    std::uint64_t value = 0;
    for (auto at = first; at < line.size() && line[at] >= '0' && line[at] <= '9'; ++at) {
      value = value * 10 + static_cast<std::uint64_t>(line[at] - '0');
    }
    return value;
  }
  return std::nullopt;
}

}  // namespace

std::uint64_t available_host_memory_bytes() {
  std::uint64_t available = std::numeric_limits<std::int64_t>::max();
  if (const auto kib = read_number("/proc/meminfo", "MemAvailable:")) {
    available = *kib * 1024;
  } else if (const auto pages = sysconf(_SC_PHYS_PAGES); pages > 0) {
    available = static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  }
  const auto limit = read_number("/sys/fs/cgroup/memory.max", "");
  const auto used = read_number("/sys/fs/cgroup/memory.current", "");
  if (limit && used) {
    // Cached file pages count as used but are given back on demand.
    const auto cached = read_number("/sys/fs/cgroup/memory.stat", "inactive_file ").value_or(0);
    const std::uint64_t held = *used > cached ? *used - cached : 0;
    available = std::min(available, *limit > held ? *limit - held : 0);
  }
  return available;
}

void require_host_memory(std::string_view where, double need_bytes) {
  if (const auto have = available_host_memory_bytes(); need_bytes > static_cast<double>(have)) {
    throw OutOfMemory(where, static_cast<std::uint64_t>(std::min(need_bytes, 0x1p63)), have);
  }
}

}  // namespace moescope
