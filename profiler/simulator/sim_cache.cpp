#include "profiler/simulator/sim_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "core/base/error.hpp"

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
  if (dirty_bytes < 0 || dirty_bytes > capacity_bytes) {
    throw InvalidArgument(fmt::format("{}.dirty_bytes", name), fmt::to_string(dirty_bytes),
                          fmt::format("must be in [0, {}]", capacity_bytes));
  }
  if (kept_ways < 0 || kept_ways > ways) {
    throw InvalidArgument(fmt::format("{}.kept_ways", name), fmt::to_string(kept_ways),
                          fmt::format("must be in [0, {}]", ways));
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
  if (geometry.dirty_bytes > 0) {
    write_numbers_.assign(sets * padded_ways_, 0);
  }
}

std::size_t SectoredCache::set_of(std::uint64_t line) const {
  const bool hashed = geometry_.placement == Placement::kHashed;
  const std::uint64_t place = hashed ? hash_line(line) : line;
  // Hashed: line after line of a class takes the next set; where that begins is drawn anew for every round.
  const std::uint64_t in_class = (line >> class_bits_) / (hashed ? geometry_.lines_per_place : 1);
  const std::uint64_t start = hashed ? hash_line(in_class / sets_per_class_) >> 20U : 0;
  const std::uint64_t set = (in_class + start) % sets_per_class_;
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

std::size_t SectoredCache::victim(std::size_t set) {
  const std::size_t first = set * padded_ways_;
  std::size_t way = ways_ - 1;  // empty ways are the last ones
  if (lines_[first + way] == kNoLine) {
    return way;
  }
  if (geometry_.replacement == Replacement::kRandom) {
    victims_[set] = victims_[set] * 1664525U + 1013904223U;  // Numerical Recipes' generator
    way = (victims_[set] >> 16) % ways_;
  }
  if (!kept_.empty()) {
    for (std::size_t tried = 0; tried < ways_; ++tried) {
      const std::size_t candidate = (way + ways_ - tried) % ways_;
      if (kept_[first + candidate] == 0) {
        return candidate;
      }
    }
  }
  return way;
}

std::size_t SectoredCache::touch(std::uint64_t line, CacheOutcome& outcome) {
  const std::size_t set = set_of(line);
  const std::size_t first = set * padded_ways_;
  std::size_t way = find(set, line);
  std::uint8_t state = 0;
  std::uint8_t kept = 0;
  std::uint32_t number = 0;
  if (way != kAbsent) {
    number = write_numbers_.empty() ? 0 : write_numbers_[first + way];
    state = sectors_[first + way];
    kept = kept_.empty() ? 0 : kept_[first + way];
  } else {
    way = victim(set);
    outcome.written_back = sectors_[first + way] >> kSectorsPerLine;
    outcome.evicted_line = lines_[first + way];
  }
  const auto to_front = [&](auto& values, auto value) {
    auto* const begin = &values[first];
    std::move_backward(begin, begin + way, begin + way + 1);
    *begin = value;
  };
  to_front(lines_, static_cast<std::uint32_t>(line));
  to_front(sectors_, state);
  if (!kept_.empty()) {
    to_front(kept_, kept);
  }
  if (!write_numbers_.empty()) {
    to_front(write_numbers_, number);
  }
  return first;
}

void SectoredCache::note_write(std::size_t first, bool dirty, CacheOutcome& outcome) {
  if (write_numbers_.empty()) {
    return;
  }
  write_numbers_[first] = ++last_write_;
  if (dirty) {
    return;
  }
  const std::int64_t most = std::max<std::int64_t>(geometry_.dirty_bytes / kLineBytes / geometry_.sets(), 1);
  std::int64_t dirty_lines = 0;
  std::size_t oldest = first;
  for (std::size_t way = first; way < first + ways_; ++way) {
    const bool is_dirty = sectors_[way] >> kSectorsPerLine != 0;
    dirty_lines += is_dirty ? 1 : 0;
    oldest = is_dirty && write_numbers_[way] < write_numbers_[oldest] ? way : oldest;
  }
  if (dirty_lines > most) {
    outcome.cleaned = sectors_[oldest] >> kSectorsPerLine;
    sectors_[oldest] &= kWholeLine;
  }
}

void SectoredCache::keep(std::uint64_t line) {
  const std::size_t set = set_of(line);
  const std::size_t way = find(set, line);
  if (way == kAbsent || geometry_.kept_ways == 0) {
    return;
  }
  if (kept_.empty()) {
    kept_.assign(lines_.size(), 0);
  }
  std::uint8_t* const kept = &kept_[set * padded_ways_];
  kept[way] = 1;
  std::int64_t count = 0;
  for (std::size_t i = 0; i < ways_; ++i) {
    count += kept[i];
    if (count > geometry_.kept_ways) {
      kept[i] = 0;
    }
  }
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
  const std::size_t first = touch(line, outcome);
  const bool dirty = sectors_[first] >> kSectorsPerLine != 0;
  sectors_[first] |= static_cast<std::uint8_t>(sectors | sectors << kSectorsPerLine);
  note_write(first, dirty, outcome);
  return outcome;
}

CacheOutcome SectoredCache::reduce(std::uint64_t line, SectorMask sectors) {
  CacheOutcome outcome;
  const std::size_t first = touch(line, outcome);
  outcome.missing = static_cast<SectorMask>(sectors & ~sectors_[first]);
  const bool dirty = sectors_[first] >> kSectorsPerLine != 0;
  sectors_[first] |= static_cast<std::uint8_t>(sectors | sectors << kSectorsPerLine);
  note_write(first, dirty, outcome);
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
  if (!kept_.empty()) {
    close_gap(kept_, std::uint8_t{0});
  }
  if (!write_numbers_.empty()) {
    close_gap(write_numbers_, std::uint32_t{0});
  }
}

void SectoredCache::invalidate() {
  std::ranges::fill(lines_, kNoLine);
  std::ranges::fill(sectors_, std::uint8_t{0});
  kept_.clear();
}

std::int64_t SectoredCache::dirty_sectors() const {
  std::int64_t sectors = 0;
  for (const std::uint8_t state : sectors_) {
    sectors += std::popcount(static_cast<std::uint8_t>(state >> kSectorsPerLine));
  }
  return sectors;
}

}  // namespace moescope
