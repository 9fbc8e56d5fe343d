#include "profiler/simulator/sim_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <list>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "profiler/simulator/sim_memory.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

CacheGeometry plain(std::int64_t sets, std::int64_t ways, Replacement replacement = Replacement::kLru) {
  return {.capacity_bytes = sets * ways * kLineBytes,
          .ways = ways,
          .replacement = replacement,
          .placement = Placement::kLowBits,
          .write_miss = WriteMiss::kAllocate};
}

std::vector<unsigned> all_classes() {
  std::vector<unsigned> classes(kMaxClasses);
  std::iota(classes.begin(), classes.end(), 0U);
  return classes;
}

TEST(SimCache, CountsAHandComputedStream) {
  SectoredCache cache(plain(2, 2));  // lines 0, 2, 4 share set 0
  EXPECT_EQ(cache.read(0, 0b0011).missing, 0b0011);
  EXPECT_EQ(cache.read(0, 0b0110).missing, 0b0100);  // sector 1 is there
  EXPECT_EQ(cache.read(2, kWholeLine).missing, kWholeLine);
  EXPECT_EQ(cache.read(1, kWholeLine).missing, kWholeLine);  // set 1: disturbs nothing
  EXPECT_EQ(cache.read(0, 0b0001).missing, 0);               // 0 is the most recent again
  EXPECT_EQ(cache.read(4, 0b0001).missing, 0b0001);          // 2 leaves
  EXPECT_TRUE(cache.holds(0, 0b0111));
  EXPECT_FALSE(cache.holds(2, 0b0001));
}

TEST(SimCache, WritesBackDirtySectorsOnlyAndOnce) {
  SectoredCache cache(plain(1, 2));
  EXPECT_EQ(cache.write(7, 0b0101).missing, 0);  // whole sectors are not fetched
  EXPECT_EQ(cache.reduce(7, 0b0011).missing, 0b0010);
  EXPECT_EQ(cache.dirty_sectors(), 3);
  cache.read(8, kWholeLine);
  const CacheOutcome outcome = cache.read(9, kWholeLine);
  EXPECT_EQ(outcome.written_back, 0b0111);
  EXPECT_EQ(outcome.evicted_line, 7U);
  EXPECT_EQ(cache.dirty_sectors(), 0);
}

TEST(SimCache, WritesPassByWhenAskedTo) {
  CacheGeometry geometry = plain(1, 2);
  geometry.write_miss = WriteMiss::kAround;
  SectoredCache cache(geometry);
  EXPECT_EQ(cache.write(3, 0b1000).missing, 0b1000);
  EXPECT_FALSE(cache.holds(3, 0b1000));
  cache.read(3, 0b0001);
  EXPECT_EQ(cache.write(3, 0b1000).missing, 0);
  EXPECT_EQ(cache.dirty_sectors(), 1);
}

TEST(SimCache, ForgetsOneLineAndKeepsTheOrderOfTheOthers) {
  SectoredCache cache(plain(1, 3));
  for (const std::uint64_t line : {1U, 2U, 3U}) {
    cache.read(line, kWholeLine);
  }
  cache.forget(2);
  EXPECT_FALSE(cache.holds(2, 0b0001));
  cache.read(4, kWholeLine);  // takes the free place
  EXPECT_TRUE(cache.holds(1, kWholeLine));
  cache.read(5, kWholeLine);  // 1 is the oldest
  EXPECT_FALSE(cache.holds(1, 0b0001));
}

/// The same cache written the slow way: a list per set, most recent first; limits by looking at every line.
class SlowLru {
 public:
  explicit SlowLru(const CacheGeometry& geometry) : geometry_(geometry) {}

  struct Line {
    std::uint64_t number;
    SectorMask valid = 0;
    SectorMask dirty = 0;
    bool kept = false;
    std::uint64_t written = 0;
  };

  CacheOutcome access(std::uint64_t line, SectorMask sectors, bool fetch, bool dirty) {
    auto& set = set_of(line);
    CacheOutcome outcome;
    const auto found =
        std::find_if(set.begin(), set.end(), [&](const Line& one) { return one.number == line; });
    if (found != set.end()) {
      set.splice(set.begin(), set, found);
    } else {
      if (set.size() == static_cast<std::size_t>(geometry_.ways)) {
        auto victim = std::prev(set.end());
        for (auto one = set.rbegin(); one != set.rend(); ++one) {
          if (!one->kept) {
            victim = std::prev(one.base());
            break;
          }
        }
        outcome.written_back = victim->dirty;
        outcome.evicted_line = victim->number;
        set.erase(victim);
      }
      set.push_front({line});
    }
    Line& front = set.front();
    outcome.missing = fetch ? static_cast<SectorMask>(sectors & ~front.valid) : SectorMask{0};
    front.valid |= sectors;
    if (dirty) {
      front.dirty |= sectors;
      front.written = ++writes_;
      clean_one(line, outcome);
    }
    return outcome;
  }

  void keep(std::uint64_t line) {
    auto& set = set_of(line);
    std::int64_t kept = 0;
    for (Line& one : set) {
      one.kept = (one.kept || one.number == line) && geometry_.kept_ways > 0;
      kept += one.kept ? 1 : 0;
      one.kept = one.kept && kept <= geometry_.kept_ways;
    }
  }

 private:
  std::list<Line>& set_of(std::uint64_t line) {
    return lists_[line % static_cast<std::uint64_t>(geometry_.sets())];
  }

  void clean_one(std::uint64_t line, CacheOutcome& outcome) {
    const std::int64_t most =
        std::max<std::int64_t>(geometry_.dirty_bytes / kLineBytes / geometry_.sets(), 1);
    std::int64_t dirty = 0;
    Line* oldest = nullptr;
    for (Line& one : set_of(line)) {
      if (one.dirty != 0) {
        ++dirty;
        oldest = oldest == nullptr || one.written < oldest->written ? &one : oldest;
      }
    }
    if (geometry_.dirty_bytes > 0 && dirty > most) {
      outcome.cleaned = std::exchange(oldest->dirty, 0);
    }
  }

  CacheGeometry geometry_;
  std::uint64_t writes_ = 0;
  std::map<std::uint64_t, std::list<Line>> lists_;
};

TEST(SimCache, AgreesWithABruteForceModelOnRandomStreams) {
  std::uint64_t draw = 0;
  for (const auto& [sets, ways] : {std::pair{1, 1}, {1, 8}, {3, 2}, {64, 4}, {128, 16}, {192, 4}}) {
    for (const unsigned lines : {2U, 40U, 4000U}) {
      for (const int limits : {0, 1, 2, 3}) {
        SCOPED_TRACE(fmt::format("{} sets, {} ways, {} lines, limits {}", sets, ways, lines, limits));
        CacheGeometry geometry = plain(sets, ways);
        geometry.dirty_bytes = limits % 2 == 1 ? geometry.capacity_bytes / 3 : 0;
        geometry.kept_ways = limits / 2 == 1 ? (ways + 2) / 3 : 0;
        SectoredCache cache(geometry);
        SlowLru slow(geometry);
        const Philox random(17, lines);
        std::int64_t written_back = 0;
        std::int64_t cleaned = 0;
        for (int i = 0; i < (limits % 2 == 1 ? 2000 : 20000); ++i) {
          const std::uint64_t bits = random.bits(draw++);
          const std::uint64_t line = bits % lines;
          const auto sectors = static_cast<SectorMask>((bits >> 40) % 15 + 1);
          const unsigned kind = (bits >> 50) % 3;
          const CacheOutcome got = kind == 0   ? cache.read(line, sectors)
                                   : kind == 1 ? cache.write(line, sectors)
                                               : cache.reduce(line, sectors);
          const CacheOutcome want = slow.access(line, sectors, kind != 1, kind != 0);
          ASSERT_EQ(got.missing, want.missing) << "access " << i;
          ASSERT_EQ(got.written_back, want.written_back) << "access " << i;
          ASSERT_EQ(got.cleaned, want.cleaned) << "access " << i;
          if (want.written_back != 0) {
            ASSERT_EQ(got.evicted_line, want.evicted_line) << "access " << i;
          }
          if (kind == 2 && (bits >> 60) % 2 == 0) {
            cache.keep(line);
            slow.keep(line);
          }
          written_back += std::popcount(got.written_back);
          cleaned += std::popcount(got.cleaned);
        }
        if (lines == 4000 && sets * ways >= 8) {
          EXPECT_EQ(cleaned > 0, limits % 2 == 1);
          EXPECT_TRUE(written_back > 0 || limits % 2 == 1);
        }
      }
    }
  }
}

TEST(SimCache, SimulatesEveryClassAsTheWholeCacheDoes) {
  for (const Replacement replacement : {Replacement::kLru, Replacement::kRandom}) {
    CacheGeometry geometry = plain(192, 4, replacement);
    geometry.placement = Placement::kHashed;
    SectoredCache whole(geometry);
    std::vector<SectoredCache> parts;
    for (unsigned c = 0; c < kMaxClasses; ++c) {
      parts.emplace_back(geometry, std::vector<unsigned>{c});
    }
    const Philox random(3, 0);
    for (std::uint64_t i = 0; i < 50000; ++i) {
      const std::uint64_t line = random.bits(i) % 2000;
      const CacheOutcome a = whole.reduce(line, kWholeLine);
      const CacheOutcome b = parts[line_class(line, Placement::kHashed)].reduce(line, kWholeLine);
      ASSERT_EQ(a.missing, b.missing);
      ASSERT_EQ(a.written_back, b.written_back);
    }
  }
}

/// A range as long as the cache fits it, whole and in order or not: every set takes its share.
TEST(SimCache, HashedLinesOfARangeFillAllSets) {
  CacheGeometry geometry = plain(200 * 64, 16);
  geometry.placement = Placement::kHashed;
  SectoredCache cache(geometry);
  const auto lines = static_cast<std::uint64_t>(geometry.sets() * geometry.ways);
  for (std::uint64_t i = 0; i < lines; ++i) {
    cache.read(i * 7919 % lines, kWholeLine);
  }
  std::int64_t missing = 0;
  for (std::uint64_t i = 0; i < lines; ++i) {
    missing += cache.read(i, kWholeLine).missing != 0 ? 1 : 0;
  }
  EXPECT_EQ(missing, 0);
}

TEST(SimCache, HashFillsSetsEvenly) {
  CacheGeometry geometry = plain(400 * 64, 16);  // H100: 50 MiB
  geometry.placement = Placement::kHashed;
  SectoredCache cache(geometry);
  // A stride that would fall into few sets by its low bits: columns of a 320 x 320 grid of 2 KiB rows.
  const std::uint64_t lines = 200000;  // half of the cache
  for (int pass = 0; pass < 2; ++pass) {
    std::int64_t missing = 0;
    for (std::uint64_t i = 0; i < lines; ++i) {
      missing += cache.read(i * 5120, kWholeLine).missing != 0 ? 1 : 0;
    }
    if (pass == 1) {
      EXPECT_LT(missing, static_cast<std::int64_t>(lines) / 20);
    }
  }
}

TEST(SimCache, RefusesGeometryThatCannotBe) {
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [] { CacheGeometry{.capacity_bytes = 100, .ways = 1}.validate("l2"); }),
            "l2.capacity_bytes = 100: must be a positive multiple of 128 (1 ways of 128-byte lines)");
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [] { CacheGeometry{.capacity_bytes = 128, .ways = 0}.validate("l1"); }),
            "l1.ways = 0: must be in [1, 64]");
}

// --- the hierarchy ---

MemoryGeometry small_memory(L2Halves halves = L2Halves::kOne) {
  return {.num_sms = 2, .l1 = plain(1, 2), .l2 = plain(2, 4), .halves = halves};
}

MemoryCounters total(const MemoryModel& model) {
  MemoryCounters sum;
  for (const MemoryCounters& one : model.counters()) {
    sum += one;
  }
  return sum;
}

TEST(SimMemory, CountsAHandComputedStream) {
  const auto classes = all_classes();
  MemoryModel memory(small_memory(), classes);
  memory.access(0, 64, 128, AccessKind::kReadCached);  // sectors 2-3 of line 0, 0-1 of line 1
  memory.access(0, 64, 128, AccessKind::kReadCached);  // all in L1
  memory.access(1, 64, 1, AccessKind::kReadCached);    // another L1: one sector, in L2
  memory.access(0, 0, 32, AccessKind::kWrite);
  memory.access(1, 96, 32, AccessKind::kReduce);  // in L2
  memory.access(1, 256, 4, AccessKind::kReduce);  // not in L2: a pair of sectors comes
  memory.access(0, 0, 32, AccessKind::kRead);     // around L1
  EXPECT_EQ(total(memory), (MemoryCounters{.l1_read = 9,
                                           .l1_hit = 4,
                                           .l2_read = 6,
                                           .l2_hit = 2,
                                           .l2_write = 1,
                                           .l2_reduce = 2,
                                           .link = 0,
                                           .hbm_read = 6,
                                           .hbm_write = 0}));
  EXPECT_EQ(memory.dirty_sectors(), 3);
  memory.begin_kernel();
  memory.access(0, 64, 32, AccessKind::kReadCached);
  EXPECT_EQ(total(memory).l1_hit, 4);  // L1 forgot
  EXPECT_EQ(total(memory).l2_hit, 3);
}

/// A sector that was stored in part is completed from HBM when it is read, together with its neighbour.
TEST(SimMemory, CompletesSectorsThatWereStoredInPart) {
  const auto classes = all_classes();
  MemoryModel memory(small_memory(), classes);
  const auto read = [&](std::uint64_t address, std::uint64_t bytes) {
    const std::int64_t before = total(memory).hbm_read;
    memory.access(0, address, bytes, AccessKind::kRead);
    return total(memory).hbm_read - before;
  };
  memory.access(0, 0, 32, AccessKind::kWrite);  // whole: nothing to complete
  EXPECT_EQ(read(0, 32), 0);
  memory.access(0, 128, 40, AccessKind::kWrite);  // 8 bytes of the second sector
  EXPECT_EQ(read(128, 32), 0);
  EXPECT_EQ(read(160, 32), 2);
  EXPECT_EQ(read(160, 32), 0);
  memory.access(0, 256, 20, AccessKind::kWrite);  // two parts make a whole
  memory.access(1, 276, 12, AccessKind::kWrite);
  EXPECT_EQ(read(256, 32), 0);
  memory.access(0, 384, 4, AccessKind::kWrite);  // two neighbours: one pair completes both
  memory.access(0, 444, 4, AccessKind::kWrite);
  EXPECT_EQ(read(384, 64), 2);
  memory.access(0, 512, 64, AccessKind::kRead);
  memory.access(0, 516, 4, AccessKind::kWrite);  // of a sector that is there
  EXPECT_EQ(read(512, 32), 0);
}

/// A kernel's code comes from HBM, and is not what its multiprocessors ask L2 for.
TEST(SimMemory, FetchesCodeOncePerKernel) {
  const auto classes = all_classes();
  MemoryModel memory(small_memory(), classes);
  memory.begin_kernel(1000);
  EXPECT_EQ(total(memory), (MemoryCounters{.hbm_read = 1024 / 32}));
  memory.begin_kernel(0);
  EXPECT_EQ(total(memory).hbm_read, 1024 / 32);
  memory.begin_kernel(128);  // another one's
  EXPECT_EQ(total(memory).hbm_read, 1152 / 32);
}

TEST(SimMemory, WhatIsWrittenComesOutOnce) {
  const auto classes = all_classes();
  MemoryModel memory(small_memory(), classes);
  memory.access(0, 0, 64 * kLineBytes, AccessKind::kWrite);
  EXPECT_EQ(total(memory).hbm_read, 0);
  EXPECT_EQ(total(memory).hbm_write + memory.dirty_sectors(), 64 * 4);
  EXPECT_EQ(memory.dirty_sectors(), 8 * 4);
}

TEST(SimMemory, HalvesEitherAskAcrossEachTimeOrKeepACopy) {
  const auto classes = all_classes();
  for (const L2Halves halves : {L2Halves::kFetchAcross, L2Halves::kCacheBoth}) {
    MemoryModel memory(small_memory(halves), classes);
    memory.access(0, 0, kLineBytes, AccessKind::kRead);
    memory.access(1, 0, kLineBytes, AccessKind::kRead);
    EXPECT_EQ(total(memory).hbm_read, 4);  // the second finds it in one of the halves
    EXPECT_EQ(total(memory).l2_hit, 4);
    EXPECT_EQ(total(memory).link, 4);  // one of the two is away from home
    memory.access(0, 0, kLineBytes, AccessKind::kRead);
    memory.access(1, 0, kLineBytes, AccessKind::kRead);
    EXPECT_EQ(total(memory).hbm_read, 4);
    EXPECT_EQ(total(memory).link, halves == L2Halves::kFetchAcross ? 8 : 4);
    memory.access(0, 0, kLineBytes, AccessKind::kReduce);
    memory.access(1, 0, kLineBytes, AccessKind::kReduce);  // drops the copy
    const std::int64_t before = total(memory).link;
    memory.access(0, 0, kLineBytes, AccessKind::kRead);
    memory.access(1, 0, kLineBytes, AccessKind::kRead);
    EXPECT_EQ(total(memory).link - before, 4);
    EXPECT_EQ(total(memory).hbm_read, 4);
  }
}

TEST(SimMemory, CopiesHalveWhatTheHalvesHold) {
  const auto classes = all_classes();
  const auto second_pass_misses = [&](L2Halves halves) {
    MemoryGeometry geometry{.num_sms = 2, .l1 = plain(64, 2), .l2 = plain(64 * 64, 16), .halves = halves};
    geometry.l2.placement = geometry.l1.placement = Placement::kHashed;
    MemoryModel memory(geometry, classes);
    const std::uint64_t bytes = static_cast<std::uint64_t>(geometry.l2.capacity_bytes) * 6 / 10;
    for (int pass = 0; pass < 2; ++pass) {
      const std::int64_t before = total(memory).hbm_read;
      for (std::uint64_t at = 0; at < bytes; at += kLineBytes) {
        memory.access(0, at, kLineBytes, AccessKind::kRead);
        memory.access(1, at, kLineBytes, AccessKind::kRead);
      }
      if (pass == 1) {
        return static_cast<double>(total(memory).hbm_read - before) * kSectorBytes /
               static_cast<double>(bytes);
      }
    }
    return 0.0;
  };
  EXPECT_LT(second_pass_misses(L2Halves::kFetchAcross), 0.05);
  EXPECT_GT(second_pass_misses(L2Halves::kCacheBoth), 0.3);
}

TEST(SimMemory, PartsAddUpToTheWhole) {
  MemoryGeometry geometry{
      .num_sms = 3, .l1 = plain(64, 2), .l2 = plain(64 * 4, 8), .halves = L2Halves::kCacheBoth};
  geometry.l2.placement = geometry.l1.placement = Placement::kHashed;
  const auto classes = all_classes();
  const auto replay = [&](std::span<const unsigned> some) {
    MemoryModel memory(geometry, some);
    const Philox random(5, 0);
    for (std::uint64_t i = 0; i < 20000; ++i) {
      const std::uint64_t bits = random.bits(i);
      memory.access(static_cast<std::int64_t>(i % 3), bits % 1000000, (bits >> 32) % 3000 + 1,
                    static_cast<AccessKind>((bits >> 60) % 4));
    }
    return total(memory);
  };
  MemoryCounters sum;
  for (unsigned first = 0; first < kMaxClasses; first += 16) {
    sum += replay(std::span(classes).subspan(first, 16));
  }
  EXPECT_EQ(sum, replay(classes));
}

/// As large as L2, stored and read again: every set of either half has exactly its lines.
TEST(SimMemory, ALongRangeFillsBothHalvesEvenly) {
  MemoryGeometry geometry{
      .num_sms = 2, .l1 = plain(64, 2), .l2 = plain(64 * 64, 16), .halves = L2Halves::kFetchAcross};
  geometry.l2.placement = geometry.l1.placement = Placement::kHashed;
  MemoryModel memory(geometry, all_classes());
  const auto bytes = static_cast<std::uint64_t>(geometry.l2.capacity_bytes);
  memory.access(0, 0, bytes, AccessKind::kWrite);
  memory.access(0, 0, bytes, AccessKind::kRead);
  EXPECT_EQ(total(memory).hbm_write, 0);
  EXPECT_EQ(total(memory).hbm_read, 0);
}

}  // namespace
}  // namespace moescope
