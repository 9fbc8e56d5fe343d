#include "profiler/sim_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "core/error.hpp"

namespace moescope {

void CacheGeometry::validate(std::string_view name) const {
  if (ways < 1 || ways > 64) {
    throw InvalidArgument(fmt::format("{}.ways", name), fmt::to_string(ways), "must be in [1, 64]");
  }
  if (capacity_bytes < 1 || capacity_bytes % (kLineBytes * ways) != 0) {
    throw InvalidArgument(fmt::format("{}.capacity_bytes", name), fmt::to_string(capacity_bytes),
                          fmt::format("must be a positive multiple of {} ({} ways of {}-byte lines)",
                                      kLineBytes * ways, ways, kLineBytes));
  }
}

SectoredCache::SectoredCache(const CacheGeometry& geometry, std::span<const unsigned> classes)
    : geometry_(geometry),
      ways_(static_cast<std::size_t>(geometry.ways)),
      sets_per_class_(static_cast<std::uint64_t>(geometry.sets()) / geometry.classes()),
      slot_of_class_(geometry.classes(), -1) {
  geometry.validate("cache");
  int slots = 0;
  if (classes.empty()) {
    for (int& slot : slot_of_class_) {
      slot = slots++;
    }
  }
  for (const unsigned one : classes) {
    if (one >= slot_of_class_.size() || slot_of_class_[one] >= 0) {
      throw InternalError(
          fmt::format("class {} of a cache with {} is unknown or named twice", one, slot_of_class_.size()));
    }
    slot_of_class_[one] = slots++;
  }
  const std::size_t sets = static_cast<std::size_t>(slots) * sets_per_class_;
  lines_.assign(sets * ways_, Way{0, 0, 0});
  if (geometry.replacement == Replacement::kRandom) {
    victims_.assign(sets, 0);
  }
}

std::size_t SectoredCache::set_of(std::uint64_t line) const {
  const bool hashed = geometry_.placement == Placement::kHashed;
  const std::uint64_t place = hashed ? hash_line(line) : line;
  const std::uint64_t in_class = place / slot_of_class_.size();
  // Hashed: the upper bits scaled to the sets of a class, so that any number of sets is filled evenly.
  const std::uint64_t set =
      hashed ? ((in_class & 0xffffffffU) * sets_per_class_) >> 32 : in_class % sets_per_class_;
  const int slot = slot_of_class_[place % slot_of_class_.size()];
  if (slot < 0) {
    throw InternalError(fmt::format("line {} is of a class that is not simulated", line));
  }
  return static_cast<std::size_t>(slot) * sets_per_class_ + set;
}

SectoredCache::Way* SectoredCache::find(std::uint64_t line) {
  Way* const first = &lines_[set_of(line) * ways_];
  for (Way* way = first; way != first + ways_ && way->valid != 0; ++way) {
    if (way->line == line) {
      return way;
    }
  }
  return nullptr;
}

SectoredCache::Way& SectoredCache::touch(std::uint64_t line, CacheOutcome& outcome) {
  const std::size_t set = set_of(line);
  Way* const first = &lines_[set * ways_];
  Way* const end = first + ways_;
  Way* way = first;
  while (way != end && way->valid != 0 && way->line != line) {
    ++way;
  }
  Way found{line, 0, 0};
  if (way == end) {
    way = end - 1;
    if (geometry_.replacement == Replacement::kRandom) {
      victims_[set] = victims_[set] * 1664525U + 1013904223U;  // Numerical Recipes' generator
      way = first + (victims_[set] >> 16) % ways_;
    }
    outcome.written_back = way->dirty;
    outcome.evicted_line = way->line;
  } else if (way->valid != 0) {
    found = *way;
  }
  std::move_backward(first, way, way + 1);
  *first = found;
  return *first;
}

CacheOutcome SectoredCache::read(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome;
  Way& way = touch(line, outcome);
  outcome.missing = static_cast<SectorMask>(sectors & ~way.valid);
  way.valid |= sectors;
  return outcome;
}

CacheOutcome SectoredCache::write(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome;
  if (geometry_.write_miss == WriteMiss::kAround && find(line) == nullptr) {
    outcome.missing = sectors;
    return outcome;
  }
  Way& way = touch(line, outcome);
  way.valid |= sectors;
  way.dirty |= sectors;
  return outcome;
}

CacheOutcome SectoredCache::reduce(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome = read(line, sectors);
  lines_[set_of(line) * ways_].dirty |= sectors;
  return outcome;
}

bool SectoredCache::holds(std::uint64_t line, SectorMask sectors) const {
  const Way* const first = &lines_[set_of(line) * ways_];
  return std::any_of(first, first + ways_,
                     [&](const Way& way) { return way.line == line && (way.valid & sectors) == sectors; });
}

void SectoredCache::forget(std::uint64_t line) {
  if (Way* const way = find(line)) {
    Way* const end = &lines_[set_of(line) * ways_] + ways_;
    std::move(way + 1, end, way);
    *(end - 1) = Way{0, 0, 0};
  }
}

void SectoredCache::invalidate() { std::ranges::fill(lines_, Way{0, 0, 0}); }

std::int64_t SectoredCache::dirty_sectors() const {
  std::int64_t sectors = 0;
  for (const Way& way : lines_) {
    sectors += std::popcount(way.dirty);
  }
  return sectors;
}

}  // namespace moescope
