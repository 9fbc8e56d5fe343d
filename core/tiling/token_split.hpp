#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/base/gpu_traits.hpp"

namespace moescope {

/// How the token-by-token kernels (token_pairs.cuh) share work. A *worker* is `team` warps that together hold
/// one row of W or V, each a slice of it, and a block has as many workers as its warps make: eight warps
/// where a token is split, else one team. The pairs of a token are dealt to `splits()` workers in turn
/// (worker s takes pairs s, s + splits, ...), which sit in one block, in the blocks of one cluster, or in
/// several clusters. Depends on the shape and the device's multiprocessors alone, so the order of every sum
/// does too.
struct TokenSplit {
  static constexpr std::int64_t kWarpsPerBlock = 8;
  /// 16-byte loads per lane and row: 4 x 32 lanes x 16 B = 2 KiB, d = 1024 in bf16.
  static constexpr std::int64_t kMaxChunks = 4;
  static constexpr std::int64_t kBytesPerChunk = std::int64_t{32} * 16;
  /// Portable limit of thread block clusters (CUDA programming guide).
  static constexpr std::int64_t kMaxClusterBlocks = 8;
  static constexpr std::int64_t kMaxClusters = 8;
  /// Warps of 128 registers that fill a multiprocessor.
  static constexpr std::int64_t kWarpsPerSm = 16;
  /// Most blocks in all when a token has several clusters. More only add sums to combine: L = 8, K = 512
  /// takes 0.017 ms with 64 blocks and with 128 (measured, docs/performance/).
  static constexpr std::int64_t kBlocksInClusters = 64;
  /// A worker with fewer pairs than this is mostly start-up (guess; two loads in flight need two pairs).
  static constexpr std::int64_t kMinPairsPerWorker = 2;

  std::int64_t chunks = 1;          ///< 16-byte loads per lane and row: 1 to 4
  std::int64_t team = 1;            ///< warps per worker: 1, 2, 4 or 8
  std::int64_t warps = 8;           ///< of a block
  std::int64_t block_splits = 1;    ///< workers of one token in a block
  std::int64_t cluster_blocks = 1;  ///< blocks in a cluster; above 1 only when a block has one token
  std::int64_t clusters = 1;        ///< of one token; above 1 only when clusters are full
  std::int64_t num_blocks = 0;

  constexpr std::int64_t workers_per_block() const { return warps / team; }
  constexpr std::int64_t tokens_per_block() const { return workers_per_block() / block_splits; }
  constexpr std::int64_t splits() const { return block_splits * cluster_blocks * clusters; }
  /// Every lane's every load lies within the row.
  constexpr bool is_full(std::int64_t row_bytes) const { return team * chunks * kBytesPerChunk == row_bytes; }
  /// fp32 sums of a block's workers, and with clusters the sums that a block adds for the others, its share
  /// of columns from each; nothing when each worker owns its token.
  constexpr std::int64_t shared_bytes(std::int64_t hidden_size) const {
    const std::int64_t columns = (hidden_size / 4 + cluster_blocks - 1) / cluster_blocks * cluster_blocks * 4;
    return splits() == 1 ? 0 : (workers_per_block() * hidden_size + (cluster_blocks > 1 ? columns : 0)) * 4;
  }

  /// Longest row the kernels take.
  static constexpr std::int64_t max_row_bytes() { return kWarpsPerBlock * kMaxChunks * kBytesPerChunk; }

  /// `row_bytes` = d * element size, at most max_row_bytes(). `max_cluster_blocks`: 1 on devices without
  /// clusters; `max_clusters`: 1 where there is no memory for their sums.
  static constexpr TokenSplit choose(const GpuTraits& gpu, std::int64_t num_tokens, std::int64_t top_k,
                                     std::int64_t row_bytes, std::int64_t max_cluster_blocks,
                                     std::int64_t max_clusters) {
    TokenSplit split;
    const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    const std::int64_t row_chunks = ceil_div(row_bytes, kBytesPerChunk);
    split.team = static_cast<std::int64_t>(
        std::bit_ceil(static_cast<std::uint64_t>(ceil_div(row_chunks, kMaxChunks))));
    split.chunks = ceil_div(row_chunks, split.team);
    std::int64_t to_fill = std::max<std::int64_t>(kWarpsPerSm * gpu.num_sms / (split.team * num_tokens), 1);
    // Tokens that are not split share nothing, and small blocks leave the multiprocessors evenly: 54 us
    // against 62 at L = 700, d = 2048, K = 64 (measured).
    split.warps = split.team > 1 && to_fill == 1 ? split.team : kWarpsPerBlock;
    const std::int64_t workers = split.workers_per_block();
    if (to_fill > workers) {
      // A cluster's blocks do best alone on their multiprocessors: L = 64, K = 512 took 0.058 ms with 128
      // blocks, 0.069 ms with 256 (measured).
      to_fill = std::max(to_fill / 2, workers);
    }
    const std::int64_t by_pairs = std::max<std::int64_t>(top_k / kMinPairsPerWorker, 1);
    const std::int64_t one_cluster = workers * max_cluster_blocks;
    const std::int64_t limit = max_clusters == 1 ? one_cluster
                                                 : std::clamp(kBlocksInClusters * workers / num_tokens,
                                                              one_cluster, one_cluster * max_clusters);
    const auto wanted = static_cast<std::uint64_t>(std::min({to_fill, by_pairs, limit}));
    const auto splits = static_cast<std::int64_t>(std::bit_floor(wanted));
    split.block_splits = std::min(splits, workers);
    split.cluster_blocks = std::min(splits / split.block_splits, max_cluster_blocks);
    split.clusters = splits / split.block_splits / split.cluster_blocks;
    const std::int64_t tokens = split.tokens_per_block();
    split.num_blocks = (num_tokens + tokens - 1) / tokens * split.cluster_blocks * split.clusters;
    return split;
  }
};

}  // namespace moescope
