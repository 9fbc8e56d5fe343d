#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

/// A sectored, set-associative, write-back cache, fed with line addresses. Lines are placed by a hash of
/// their number under which a long range fills all sets evenly, as GPUs do (seen in counters:
/// docs/simulator), or by its low bits, as textbooks do. Sets fall into 64 classes that a line's place
/// alone decides: replaying only the lines of some classes is exact for their sets (set sampling).
namespace moescope {

enum class Replacement : std::uint8_t { kLru, kRandom };  ///< random: a fixed sequence per set, repeatable
enum class Placement : std::uint8_t { kHashed, kLowBits };
/// What a store that misses does: take a line, or pass by. Whole sectors are never fetched to be overwritten.
enum class WriteMiss : std::uint8_t { kAllocate, kAround };

inline constexpr std::int64_t kLineBytes = 128;
inline constexpr std::int64_t kSectorBytes = 32;
inline constexpr unsigned kSectorsPerLine = 4;
inline constexpr unsigned kMaxClasses = 64;
/// Bit i: sector i of a line.
using SectorMask = std::uint8_t;
inline constexpr SectorMask kWholeLine = 0xF;

struct CacheGeometry {
  std::int64_t capacity_bytes = 0;
  std::int64_t ways = 16;
  Replacement replacement = Replacement::kLru;
  Placement placement = Placement::kHashed;
  WriteMiss write_miss = WriteMiss::kAllocate;
  /// Most dirty data: one more line, and the one written longest ago is written back and stays, clean.
  /// Each set has its share, so that some reach it before others. 0: no limit.
  std::int64_t dirty_bytes = 0;
  /// Most lines of a set that keep() protects: one more, and the one used longest ago is like others again.
  std::int64_t kept_ways = 0;
  /// Hashed: so many lines of a class that follow each other share a set. 2 for a half of L2, which is home
  /// to one of them.
  std::uint64_t lines_per_place = 1;

  std::int64_t sets() const { return capacity_bytes / (kLineBytes * ways); }
  /// Classes a line can fall into: 64, or 1 when the sets do not divide into so many.
  unsigned classes() const { return sets() % kMaxClasses == 0 ? kMaxClasses : 1; }
  /// Throws InvalidArgument naming `name` and the field: capacity a positive multiple of ways x 128 bytes,
  /// ways in [1, 64], dirty_bytes in [0, capacity], kept_ways in [0, ways].
  void validate(std::string_view name) const;
};

/// Spreads line numbers over sets; the same for every cache, so that classes agree between levels. The lower
/// 6 bits are a permutation of every 64 neighbouring lines: a long range has equally many lines in each
/// class, so that a sample of classes sees its share of it.
constexpr std::uint64_t hash_line(std::uint64_t line) {
  constexpr auto mix = [](std::uint64_t x) {
    std::uint64_t h = x * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93ULL;
    return h ^ (h >> 32);
  };
  constexpr std::uint64_t kLower = kMaxClasses - 1;
  return (mix(line) & ~kLower) | ((line ^ mix(line / kMaxClasses)) & kLower);
}
/// Class of a line among 64.
constexpr unsigned line_class(std::uint64_t line, Placement placement) {
  return static_cast<unsigned>((placement == Placement::kHashed ? hash_line(line) : line) % kMaxClasses);
}

/// What one access did.
struct CacheOutcome {
  SectorMask missing = 0;          ///< sectors that were not there, of those asked for
  SectorMask written_back = 0;     ///< dirty sectors of the line that had to leave
  SectorMask cleaned = 0;          ///< dirty sectors of a line that stays, beyond CacheGeometry::dirty_bytes
  std::uint64_t evicted_line = 0;  ///< its number, when written_back != 0
};

class SectoredCache {
 public:
  /// Line numbers lie below this: 512 GiB of addresses.
  static constexpr std::uint64_t kMaxLines = 0xffffffffU;

  /// Simulates the sets of `classes` only (ascending, < geometry.classes()); empty: all of them.
  explicit SectoredCache(const CacheGeometry& geometry, std::span<const unsigned> classes = {});

  /// Missing sectors are brought in, the line's others are left as they are.
  CacheOutcome read(std::uint64_t line, SectorMask sectors);
  /// Whole sectors are stored: they become valid and dirty; with WriteMiss::kAround a line that is absent
  /// stays so, and `missing` says which sectors went past.
  CacheOutcome write(std::uint64_t line, SectorMask sectors);
  /// Read, changed in place and dirty: what a reduction in L2 does.
  CacheOutcome reduce(std::uint64_t line, SectorMask sectors);
  /// From now on the line leaves only when its set holds nothing but such lines (PTX: evict_last).
  void keep(std::uint64_t line);
  /// Whether the line holds these sectors; changes nothing.
  bool holds(std::uint64_t line, SectorMask sectors) const;
  /// Drops one line without writing it back.
  void forget(std::uint64_t line);
  /// Drops everything without writing it back.
  void invalidate();
  /// Dirty sectors of all lines.
  std::int64_t dirty_sectors() const;

 private:
  static constexpr std::size_t kSearched = 8;  ///< ways compared at a time; sets are padded to a multiple
  static constexpr std::uint32_t kNoLine = 0xffffffffU;
  static constexpr std::size_t kAbsent = ~std::size_t{0};

  std::size_t set_of(std::uint64_t line) const;
  /// Way of the line in its set, kAbsent when it is not there.
  std::size_t find(std::size_t set, std::uint64_t line) const;
  /// The line moved, or put, into the set's first way, which is the most recent one. Returns its place.
  std::size_t touch(std::uint64_t line, CacheOutcome& outcome);
  /// The line in the first way of the set that starts at `first` was written, and was `dirty` before. Cleans
  /// another if there are too many.
  void note_write(std::size_t first, bool dirty, CacheOutcome& outcome);
  /// The way that has to leave.
  std::size_t victim(std::size_t set);

  CacheGeometry geometry_;
  std::size_t ways_;
  std::size_t padded_ways_;
  unsigned class_bits_;
  std::uint64_t sets_per_class_;
  std::vector<int> slot_of_class_;     ///< [classes] place among the simulated ones, -1 when not simulated
  std::vector<std::uint32_t> lines_;   ///< [simulated sets, padded ways] numbers, most recent first
  std::vector<std::uint8_t> sectors_;  ///< likewise: valid sectors in the lower half, dirty ones in the upper
  std::vector<std::uint32_t> write_numbers_;  ///< likewise, of the last write; empty without a limit
  std::uint32_t last_write_ = 0;
  std::vector<std::uint8_t> kept_;      ///< likewise, 1: kept; empty until a line is
  std::vector<std::uint32_t> victims_;  ///< [simulated sets] state of the random sequence
};

}  // namespace moescope
