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
      padded_ways_((ways_ + kSearched - 1) / kSearched * kSearched),
      class_bits_(geometry.classes() == kMaxClasses ? std::countr_zero(kMaxClasses) : 0),
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
  lines_.assign(sets * padded_ways_, kNoLine);
  sectors_.assign(sets * padded_ways_, 0);
  if (geometry.replacement == Replacement::kRandom) {
    victims_.assign(sets, 0);
  }
}

std::size_t SectoredCache::set_of(std::uint64_t line) const {
  const bool hashed = geometry_.placement == Placement::kHashed;
  const std::uint64_t place = hashed ? hash_line(line) : line;
  const std::uint64_t in_class = place >> class_bits_;
  // Hashed: the upper bits scaled to the sets of a class, so that any number of sets is filled evenly.
  const std::uint64_t set =
      hashed ? ((in_class & 0xffffffffU) * sets_per_class_) >> 32 : in_class % sets_per_class_;
  const int slot = slot_of_class_[place & ((1U << class_bits_) - 1)];
  if (slot < 0 || line >= kMaxLines) {
    throw InternalError(fmt::format("line {} is of a class that is not simulated, or too high", line));
  }
  return static_cast<std::size_t>(slot) * sets_per_class_ + set;
}

std::size_t SectoredCache::find(std::size_t set, std::uint64_t line) const {
  const std::uint32_t* const first = &lines_[set * padded_ways_];
  const auto wanted = static_cast<std::uint32_t>(line);
  for (std::size_t way = 0; way < padded_ways_; way += kSearched) {
    unsigned found = 0;
    for (std::size_t i = 0; i < kSearched; ++i) {
      found |= first[way + i] == wanted ? 1U << i : 0U;
    }
    if (found != 0) {
      return way + static_cast<std::size_t>(std::countr_zero(found));
    }
  }
  return kAbsent;
}

std::size_t SectoredCache::touch(std::uint64_t line, CacheOutcome& outcome) {
  const std::size_t set = set_of(line);
  std::uint32_t* const lines = &lines_[set * padded_ways_];
  std::uint8_t* const sectors = &sectors_[set * padded_ways_];
  std::size_t way = find(set, line);
  std::uint8_t state = 0;
  if (way != kAbsent) {
    state = sectors[way];
  } else {
    way = ways_ - 1;  // empty ways are the last ones
    if (geometry_.replacement == Replacement::kRandom && lines[way] != kNoLine) {
      victims_[set] = victims_[set] * 1664525U + 1013904223U;  // Numerical Recipes' generator
      way = (victims_[set] >> 16) % ways_;
    }
    outcome.written_back = sectors[way] >> kSectorsPerLine;
    outcome.evicted_line = lines[way];
  }
  std::move_backward(lines, lines + way, lines + way + 1);
  std::move_backward(sectors, sectors + way, sectors + way + 1);
  lines[0] = static_cast<std::uint32_t>(line);
  sectors[0] = state;
  return set * padded_ways_;
}

CacheOutcome SectoredCache::read(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome;
  std::uint8_t& state = sectors_[touch(line, outcome)];
  outcome.missing = static_cast<SectorMask>(sectors & ~state);
  state |= sectors;
  return outcome;
}

CacheOutcome SectoredCache::write(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome;
  if (geometry_.write_miss == WriteMiss::kAround && find(set_of(line), line) == kAbsent) {
    outcome.missing = sectors;
    return outcome;
  }
  sectors_[touch(line, outcome)] |= static_cast<std::uint8_t>(sectors | sectors << kSectorsPerLine);
  return outcome;
}

CacheOutcome SectoredCache::reduce(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome;
  std::uint8_t& state = sectors_[touch(line, outcome)];
  outcome.missing = static_cast<SectorMask>(sectors & ~state);
  state |= static_cast<std::uint8_t>(sectors | sectors << kSectorsPerLine);
  return outcome;
}

bool SectoredCache::holds(std::uint64_t line, SectorMask sectors) const {
  const std::size_t set = set_of(line);
  const std::size_t way = find(set, line);
  return way != kAbsent && (sectors_[set * padded_ways_ + way] & sectors) == sectors;
}

void SectoredCache::forget(std::uint64_t line) {
  const std::size_t set = set_of(line);
  const std::size_t way = find(set, line);
  if (way == kAbsent) {
    return;
  }
  const auto close_gap = [&](auto& values, auto empty) {
    auto* const first = &values[set * padded_ways_];
    std::move(first + way + 1, first + ways_, first + way);
    first[ways_ - 1] = empty;
  };
  close_gap(lines_, kNoLine);
  close_gap(sectors_, std::uint8_t{0});
}

void SectoredCache::invalidate() {
  std::ranges::fill(lines_, kNoLine);
  std::ranges::fill(sectors_, std::uint8_t{0});
}

std::int64_t SectoredCache::dirty_sectors() const {
  std::int64_t sectors = 0;
  for (const std::uint8_t state : sectors_) {
    sectors += std::popcount(static_cast<std::uint8_t>(state >> kSectorsPerLine));
  }
  return sectors;
}

}  // namespace moescope
