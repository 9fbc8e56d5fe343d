#include "profiler/simulator/sim_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// Beyond every tensor.
constexpr std::uint64_t kForeignData = std::uint64_t{400} << 30;
constexpr std::uint64_t kCode = std::uint64_t{420} << 30;

/// Half of L2 where a line lives: of two lines that follow each other in a class one in either half, so that
/// a long range fills the sets of both evenly.
unsigned home_of(std::uint64_t line) {
  const std::uint64_t in_class = line / kMaxClasses;
  return static_cast<unsigned>((in_class ^ hash_line(in_class / 2) >> 63U) & 1U);
}

CacheGeometry half_of(CacheGeometry l2) {
  l2.capacity_bytes /= 2;
  l2.dirty_bytes /= 2;
  l2.lines_per_place = 2;
  return l2;
}

}  // namespace

void MemoryGeometry::validate() const {
  if (num_sms < 1) {
    throw InvalidArgument("num_sms", fmt::to_string(num_sms), "must be >= 1");
  }
  l1.validate("l1");
  l2.validate("l2");
  if (halves != L2Halves::kOne) {
    half_of(l2).validate("l2.half");
  }
}

bool MemoryGeometry::can_sample() const {
  return l1.classes() == kMaxClasses && l1.placement == l2.placement &&
         (halves == L2Halves::kOne ? l2 : half_of(l2)).classes() == kMaxClasses;
}

MemoryCounters& MemoryCounters::operator+=(const MemoryCounters& other) {
  l1_read += other.l1_read;
  l1_hit += other.l1_hit;
  l2_read += other.l2_read;
  l2_hit += other.l2_hit;
  l2_write += other.l2_write;
  l2_partial += other.l2_partial;
  l2_reduce += other.l2_reduce;
  link += other.link;
  hbm_read += other.hbm_read;
  hbm_write += other.hbm_write;
  return *this;
}

MemoryCounters MemoryCounters::operator-(const MemoryCounters& other) const {
  return {l1_read - other.l1_read,     l1_hit - other.l1_hit,     l2_read - other.l2_read,
          l2_hit - other.l2_hit,       l2_write - other.l2_write, l2_partial - other.l2_partial,
          l2_reduce - other.l2_reduce, link - other.link,         hbm_read - other.hbm_read,
          hbm_write - other.hbm_write};
}

MemoryModel::MemoryModel(const MemoryGeometry& geometry, std::span<const unsigned> classes)
    : geometry_(geometry),
      classes_(classes.begin(), classes.end()),
      counters_(classes.size()),
      next_code_(kCode) {
  geometry.validate();
  slot_.fill(-1);
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    slot_.at(classes_[i]) = static_cast<int>(i);
  }
  const CacheGeometry l2 = geometry.halves == L2Halves::kOne ? geometry.l2 : half_of(geometry.l2);
  if (classes.size() < kMaxClasses && !geometry.can_sample()) {
    throw InternalError("sampling needs caches whose sets fall into 64 classes");
  }
  const auto make = [&](const CacheGeometry& cache) {
    return SectoredCache(cache, cache.classes() == kMaxClasses ? classes : std::span<const unsigned>());
  };
  l1_.assign(static_cast<std::size_t>(geometry.num_sms), make(geometry.l1));
  l2_.assign(geometry.halves == L2Halves::kOne ? 1 : 2, make(l2));
}

void MemoryModel::access(std::int64_t sm, std::uint64_t address, std::uint64_t bytes, AccessKind kind) {
  const std::uint64_t end = address + bytes;
  for (std::uint64_t line = address / kLineBytes; line * kLineBytes < end; ++line) {
    const int slot = slot_[line_class(line, geometry_.l2.placement)];
    if (slot < 0) {
      continue;
    }
    const std::uint64_t start = line * kLineBytes;
    const std::uint64_t from = std::max(address, start) - start;
    const std::uint64_t to = std::min(end, start + kLineBytes) - start;
    const unsigned first = static_cast<unsigned>(from / kSectorBytes);
    const unsigned last = static_cast<unsigned>((to + kSectorBytes - 1) / kSectorBytes);
    if (kind == AccessKind::kWrite) {
      const bool ends_inside = to % kSectorBytes != 0 && (from % kSectorBytes == 0 || last - first > 1);
      counters_[slot].l2_partial += (from % kSectorBytes != 0 ? 1 : 0) + (ends_inside ? 1 : 0);
      note_partial_write(l2_.size() == 1 ? 0 : home_of(line), line, from, to);
    }
    access_line(sm, line, static_cast<SectorMask>((1U << last) - (1U << first)), kind, counters_[slot]);
  }
}

void MemoryModel::access_line(std::int64_t sm, std::uint64_t line, SectorMask sectors, AccessKind kind,
                              MemoryCounters& counters) {
  if (kind == AccessKind::kReadCached) {
    counters.l1_read += std::popcount(sectors);
    const SectorMask missing = l1_[sm].read(line, sectors).missing;
    counters.l1_hit += std::popcount(static_cast<SectorMask>(sectors & ~missing));
    sectors = missing;
    kind = AccessKind::kRead;
  }
  if (sectors != 0) {
    access_l2(static_cast<unsigned>(sm % static_cast<std::int64_t>(l2_.size())), line, sectors, kind,
              counters);
  }
}

void MemoryModel::access_l2(unsigned half, std::uint64_t line, SectorMask sectors, AccessKind kind,
                            MemoryCounters& counters) {
  const unsigned home = l2_.size() == 1 ? 0 : home_of(line);
  const std::int64_t count = std::popcount(sectors);
  if (kind == AccessKind::kRead) {
    counters.l2_read += count;
    std::int64_t missed = 0;
    if (home == half || geometry_.halves == L2Halves::kFetchAcross) {
      counters.link += home == half ? 0 : count;
      missed = read_home(home, line, sectors, counters);
    } else {
      const CacheOutcome copy = l2_[half].read(line, sectors);
      // Copies are never dirty, but the line that made room may live here and be.
      note_eviction(copy, counters);
      if (copy.missing != 0) {
        counters.link += std::popcount(copy.missing);
        missed = read_home(home, line, copy.missing, counters);
      }
    }
    counters.l2_hit += count - missed;
    return;
  }
  counters.link += home == half ? 0 : count;
  CacheOutcome outcome;
  if (kind == AccessKind::kWrite) {
    counters.l2_write += count;
    outcome = l2_[home].write(line, sectors);
    counters.hbm_write += std::popcount(outcome.missing);  // stored past the cache
    note_eviction(outcome, counters);
  } else {
    counters.l2_reduce += count;
    outcome = l2_[home].reduce(line, sectors);
    note_eviction(outcome, counters);
    fetch(home, line, outcome.missing, counters);
    if (kind == AccessKind::kReduceKept) {
      l2_[home].keep(line);
    }
  }
  if (geometry_.halves == L2Halves::kCacheBoth) {
    l2_[1 - home].forget(line);
  }
}

void MemoryModel::note_eviction(const CacheOutcome& outcome, MemoryCounters& counters) {
  counters.hbm_write += std::popcount(outcome.written_back) + std::popcount(outcome.cleaned);
  if (outcome.written_back != 0 && !partial_.empty()) {
    partial_.erase(outcome.evicted_line);
  }
}

void MemoryModel::note_partial_write(unsigned home, std::uint64_t line, std::uint64_t from,
                                     std::uint64_t to) {
  if (from % kSectorBytes == 0 && to % kSectorBytes == 0 && partial_.empty()) {
    return;
  }
  for (std::uint64_t begin = from; begin < to;) {
    const std::uint64_t sector = begin / kSectorBytes;
    const std::uint64_t end = std::min<std::uint64_t>(to, (sector + 1) * kSectorBytes);
    const auto found = partial_.find(line);
    const bool known = found != partial_.end() && found->second[sector] != 0;
    if (known || !l2_[home].holds(line, static_cast<SectorMask>(1U << sector))) {
      const std::uint64_t below_end = ~std::uint64_t{0} >> (64 - (end - sector * kSectorBytes));
      const std::uint64_t below_begin = (std::uint64_t{1} << (begin % kSectorBytes)) - 1;
      std::uint32_t bytes = static_cast<std::uint32_t>(below_end & ~below_begin);
      bytes |= known ? found->second[sector] : 0;
      const bool whole = bytes == 0xffffffffU;
      if (known || !whole) {
        partial_[line][sector] = whole ? 0 : bytes;
      }
    }
    begin = end;
  }
}

void MemoryModel::fetch(unsigned home, std::uint64_t line, SectorMask sectors, MemoryCounters& counters) {
  const auto even = static_cast<SectorMask>((sectors | sectors >> 1U) & 0x5U);
  const auto pairs = static_cast<SectorMask>(even | even << 1U);
  counters.hbm_read += std::popcount(pairs);
  if (pairs != sectors) {
    l2_[home].read(line, pairs);
  }
  if (const auto found = partial_.find(line); found != partial_.end()) {
    for (unsigned s = 0; s < kSectorsPerLine; ++s) {
      found->second[s] = (pairs >> s & 1U) != 0 ? 0 : found->second[s];
    }
  }
}

std::int64_t MemoryModel::read_home(unsigned home, std::uint64_t line, SectorMask sectors,
                                    MemoryCounters& counters) {
  const CacheOutcome outcome = l2_[home].read(line, sectors);
  note_eviction(outcome, counters);
  SectorMask wanted = outcome.missing;
  if (const auto found = partial_.find(line); found != partial_.end()) {
    for (unsigned s = 0; s < kSectorsPerLine; ++s) {
      const bool is_partial = (sectors >> s & 1U) != 0 && found->second[s] != 0;
      wanted |= static_cast<SectorMask>(is_partial ? 1U << s : 0U);
    }
  }
  if (wanted != 0) {
    fetch(home, line, wanted, counters);
  }
  return std::popcount(wanted);
}

void MemoryModel::begin_kernel(std::int64_t code_bytes) {
  for (SectoredCache& cache : l1_) {
    cache.invalidate();
  }
  for (const std::uint64_t end = next_code_ + static_cast<std::uint64_t>(code_bytes); next_code_ < end;
       next_code_ += kLineBytes) {
    const std::uint64_t line = next_code_ / kLineBytes;
    const int slot = slot_[line_class(line, geometry_.l2.placement)];
    if (slot >= 0) {
      read_home(l2_.size() == 1 ? 0 : home_of(line), line, kWholeLine, counters_[slot]);
    }
  }
}

void MemoryModel::leave_dirty(std::int64_t bytes) {
  access(0, kForeignData, static_cast<std::uint64_t>(bytes), AccessKind::kWrite);
  std::ranges::fill(counters_, MemoryCounters{});
}

std::int64_t MemoryModel::dirty_sectors() const {
  std::int64_t sectors = 0;
  for (const SectoredCache& cache : l2_) {
    sectors += cache.dirty_sectors();
  }
  return sectors;
}

}  // namespace moescope
