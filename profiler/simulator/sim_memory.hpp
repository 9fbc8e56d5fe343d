#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "profiler/simulator/sim_cache.hpp"
#include "profiler/simulator/streams/access_stream.hpp"

/// The memory of a GPU as its kernels see it: one L1 per multiprocessor, an L2 of one or two halves, HBM.
namespace moescope {

/// How an L2 of two halves serves a multiprocessor whose line lives in the other half.
enum class L2Halves : std::uint8_t {
  kOne,          ///< no halves
  kFetchAcross,  ///< one copy, at home; the other half asks for it each time
  kCacheBoth     ///< the asking half keeps a copy of what it reads; changes go home and drop the copy
};

struct MemoryGeometry {
  std::int64_t num_sms = 1;
  CacheGeometry l1;  ///< of one multiprocessor
  CacheGeometry l2;  ///< of all of L2
  L2Halves halves = L2Halves::kOne;

  /// Throws InvalidArgument("l1.ways", ...) and the like.
  void validate() const;
  /// Whether both caches can be simulated in part.
  bool can_sample() const;
};

/// Sectors that crossed each border. Read from above: a request, not what it fetched from below.
struct MemoryCounters {
  std::int64_t l1_read = 0;     ///< asked of L1 by reads that go through it
  std::int64_t l1_hit = 0;      ///< of these, found there
  std::int64_t l2_read = 0;     ///< asked of L2, whatever for
  std::int64_t l2_hit = 0;      ///< of these, found in either half
  std::int64_t l2_write = 0;    ///< stored to L2
  std::int64_t l2_partial = 0;  ///< of these, sectors of which a part was stored
  std::int64_t l2_reduce = 0;   ///< added to in L2
  std::int64_t link = 0;        ///< crossed between the halves, either way
  std::int64_t hbm_read = 0;
  std::int64_t hbm_write = 0;

  MemoryCounters& operator+=(const MemoryCounters& other);
  MemoryCounters operator-(const MemoryCounters& other) const;
  friend bool operator==(const MemoryCounters&, const MemoryCounters&) = default;
};

/// HBM is read in pairs of sectors. A sector that was stored in part takes its other bytes from HBM when it
/// is read. Replays accesses on some of the 64 line classes. Counters are kept per class, so that results can
/// be added up in any order and the error of sampling can be told from how classes differ.
class MemoryModel {
 public:
  /// `classes`: distinct, ascending, < 64; lines of other classes are passed over. Throws InvalidArgument as
  /// validate(), InternalError for a part of the classes unless can_sample().
  MemoryModel(const MemoryGeometry& geometry, std::span<const unsigned> classes);

  /// One contiguous access by multiprocessor `sm`. Bytes count in whole sectors.
  void access(std::int64_t sm, std::uint64_t address, std::uint64_t bytes, AccessKind kind);
  /// What ran before left this much dirty data of its own in L2, the oldest there. Not counted.
  void leave_dirty(std::int64_t bytes);
  /// A kernel begins: L1 forgets, and this much of its code comes through L2, which is not counted as asked
  /// of L2: multiprocessors have caches of their own for it.
  void begin_kernel(std::int64_t code_bytes = 0);

  std::span<const unsigned> classes() const { return classes_; }
  /// Counters so far, one per class of classes().
  const std::vector<MemoryCounters>& counters() const { return counters_; }
  /// Sectors in L2 that wait to be written back.
  std::int64_t dirty_sectors() const;

 private:
  void access_line(std::int64_t sm, std::uint64_t line, SectorMask sectors, AccessKind kind,
                   MemoryCounters& counters);
  void access_l2(unsigned half, std::uint64_t line, SectorMask sectors, AccessKind kind,
                 MemoryCounters& counters);
  /// Returns how many of the sectors were not there.
  std::int64_t read_home(unsigned home, std::uint64_t line, SectorMask sectors, MemoryCounters& counters);
  /// Counts what HBM sends for these sectors of a line, and brings in their neighbours.
  void fetch(unsigned home, std::uint64_t line, SectorMask sectors, MemoryCounters& counters);
  void note_partial_write(unsigned home, std::uint64_t line, std::uint64_t from, std::uint64_t to);
  void note_eviction(const CacheOutcome& outcome, MemoryCounters& counters);

  MemoryGeometry geometry_;
  std::vector<unsigned> classes_;
  std::array<int, kMaxClasses> slot_;  ///< index into classes_, -1 when passed over
  std::vector<SectoredCache> l1_;
  std::vector<SectoredCache> l2_;  ///< one or two
  std::vector<MemoryCounters> counters_;
  /// Bytes that were stored of sectors in L2 that were never there whole, bit by bit; 0: whole.
  std::unordered_map<std::uint64_t, std::array<std::uint32_t, kSectorsPerLine>> partial_;
  std::uint64_t next_code_;  ///< where the next kernel's code lies
};

}  // namespace moescope
