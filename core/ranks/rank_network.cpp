#include "core/ranks/rank_network.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "core/base/index.hpp"

namespace moescope {
namespace {

using Clock = std::chrono::steady_clock;

struct Header {
  std::uint32_t magic = 0x6d6f7231;  // "mor1"
  RankWord word = RankWord::kAnswer;
  std::uint64_t bytes = 0;
};
/// More than a rank is ever sent: what lies about its length is no rank.
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 40U;
constexpr std::size_t kHelloBytes = 4096;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string text_of(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text.push_back(static_cast<char>(byte));
  }
  return text;
}

Error system_error(std::string_view what) {
  return {ExitCode::kDeviceError, fmt::format("ranks: {}: {}", what, std::strerror(errno))};
}

/// One address of a host, for IPv4: launchers give names and numbers of it.
sockaddr_in resolve(const std::string& address, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.c_str(), nullptr, &hints, &found) != 0 || found == nullptr) {
    throw InvalidArgument("MASTER_ADDR", address, "is no address of a machine");
  }
  sockaddr_in result{};
  std::memcpy(&result, found->ai_addr, sizeof result);
  freeaddrinfo(found);
  result.sin_port = htons(port);
  return result;
}

void wait_for(int socket, short events, std::chrono::milliseconds most) {
  pollfd waiting{.fd = socket, .events = events, .revents = 0};
  (void)poll(&waiting, 1, static_cast<int>(std::max<std::int64_t>(most.count(), 0)));
}

}  // namespace

std::chrono::milliseconds rank_timeout() {
  const char* const text = std::getenv("MOESCOPE_RANK_TIMEOUT");
  if (text == nullptr || *text == '\0') {
    return kRankTimeout;
  }
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  constexpr double kMost = 1e6;
  if (*end != '\0' || !(seconds > 0) || seconds > kMost) {
    throw InvalidArgument("MOESCOPE_RANK_TIMEOUT", text, "must be seconds, above 0 and at most 1e6");
  }
  return std::chrono::milliseconds(std::max<std::int64_t>(1, std::llround(seconds * 1000)));
}

struct RankNetwork::Peer {
  int socket = -1;
  std::vector<std::byte> partial;  ///< of the next message: header and body so far
  std::deque<RankMessage> ready;
  bool ended = false;

  explicit Peer(int open) : socket(open) {
    const int on = 1;
    (void)setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() { (void)close(socket); }
};

RankNetwork::RankNetwork(std::int64_t rank, std::int64_t ranks, std::chrono::milliseconds timeout)
    : rank_(rank), ranks_(ranks), timeout_(timeout), peers_(at(rank == 0 ? ranks : 1)) {}

RankNetwork::~RankNetwork() {
  if (listener_ >= 0) {
    (void)close(listener_);
  }
}

std::unique_ptr<RankNetwork> RankNetwork::listen(std::int64_t ranks, const std::string& address,
                                                 std::uint16_t port, std::chrono::milliseconds timeout) {
  std::unique_ptr<RankNetwork> network(new RankNetwork(0, ranks, timeout));
  sockaddr_in where = resolve(address, port);
  network->listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (network->listener_ < 0) {
    throw system_error("no socket");
  }
  const int on = 1;
  (void)setsockopt(network->listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  socklen_t size = sizeof where;
  auto* const name = reinterpret_cast<sockaddr*>(&where);
  if (bind(network->listener_, name, size) != 0 ||
      ::listen(network->listener_, static_cast<int>(ranks)) != 0 ||
      getsockname(network->listener_, name, &size) != 0) {
    throw system_error(fmt::format("cannot listen at {}:{}", address, port));
  }
  network->port_ = ntohs(where.sin_port);
  return network;
}

std::unique_ptr<RankNetwork> RankNetwork::connect(std::int64_t rank, std::int64_t ranks,
                                                  const std::string& address, std::uint16_t port,
                                                  std::string_view identity,
                                                  std::chrono::milliseconds timeout) {
  std::unique_ptr<RankNetwork> network(new RankNetwork(rank, ranks, timeout));
  const sockaddr_in where = resolve(address, port);
  const auto end = Clock::now() + timeout;
  constexpr std::chrono::milliseconds kPause{20};
  while (true) {
    const int open = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (open < 0) {
      throw system_error("no socket");
    }
    if (::connect(open, reinterpret_cast<const sockaddr*>(&where), sizeof where) == 0) {
      network->peers_[0] = std::make_unique<Peer>(open);
      break;
    }
    (void)close(open);
    if (Clock::now() >= end) {
      network->lost(0, fmt::format("does not answer at {}:{}", address, port));
    }
    std::this_thread::sleep_for(kPause);
  }
  network->port_ = port;
  Message hello(sizeof rank + identity.size());
  std::memcpy(hello.data(), &rank, sizeof rank);
  std::ranges::copy(bytes_of(identity), hello.begin() + sizeof rank);
  network->send(0, RankWord::kHello, hello);
  return network;
}

void RankNetwork::accept(std::string_view identity, const std::function<std::int64_t()>& gone) {
  const auto end = Clock::now() + timeout_;
  constexpr std::chrono::milliseconds kLook{50};
  for (std::int64_t missing = ranks_ - 1; missing > 0;) {
    if (const std::int64_t ended = gone(); ended >= 0) {
      lost(ended, "ended before it came");
    }
    if (Clock::now() >= end) {
      const auto first = std::ranges::find_if(peers_.begin() + 1, peers_.end(),
                                              [](const auto& each) { return each == nullptr; });
      lost(first - peers_.begin(),
           fmt::format("did not come within {:g} s", static_cast<double>(timeout_.count()) / 1000));
    }
    wait_for(listener_, POLLIN, kLook);
    const int open = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (open < 0) {
      continue;
    }
    auto guest = std::make_unique<Peer>(open);
    const auto patience = std::min(end, Clock::now() + std::chrono::seconds(10));
    while (guest->ready.empty() && !guest->ended && Clock::now() < patience) {
      wait_for(open, POLLIN, kLook);
      guest->ended = !read_available(*guest) || guest->partial.size() > kHelloBytes;
    }
    std::int64_t rank = -1;
    if (guest->ready.empty() || guest->ready.front().word != RankWord::kHello ||
        guest->ready.front().body.size() < sizeof rank) {
      continue;  // somebody else's connection
    }
    const Message hello = std::move(guest->ready.front().body);
    guest->ready.pop_front();
    std::memcpy(&rank, hello.data(), sizeof rank);
    if (rank < 1 || rank >= ranks_ || peers_[at(rank)] != nullptr) {
      throw InvalidArgument("ranks", fmt::to_string(ranks_),
                            fmt::format("a process came as rank {}, which {}", rank,
                                        rank < 1 || rank >= ranks_ ? "does not exist" : "is there already"));
    }
    const std::string other = text_of(std::span(hello).subspan(sizeof rank));
    if (other != identity) {
      throw InvalidArgument(
          "ranks", fmt::to_string(ranks_),
          fmt::format("rank {} is another moescope: {} (rank 0: {})", rank, other, identity));
    }
    peers_[at(rank)] = std::move(guest);
    --missing;
  }
}

RankNetwork::Peer& RankNetwork::peer(std::int64_t rank) const {
  Peer* const found = peers_[at(rank_ == 0 ? rank : 0)].get();
  if (found == nullptr) {
    throw InternalError(fmt::format("rank {} has no connection to rank {}", rank_, rank));
  }
  return *found;
}

void RankNetwork::lost(std::int64_t rank, std::string_view what) const {
  throw RankFailure(rank, stage_, what);
}

bool RankNetwork::read_available(Peer& peer) {
  constexpr std::size_t kPiece = std::size_t{1} << 20U;
  while (true) {
    // First the header, then the rest of what it announces, so that nothing is read twice.
    std::size_t wanted = sizeof(Header);
    if (peer.partial.size() >= sizeof(Header)) {
      Header header;
      std::memcpy(&header, peer.partial.data(), sizeof header);
      if (header.magic != Header{}.magic || header.bytes > kMostBytes) {
        return false;
      }
      wanted += header.bytes;
      if (peer.partial.size() == wanted) {
        peer.ready.push_back(
            {header.word, Message(peer.partial.begin() + sizeof(Header), peer.partial.end())});
        peer.partial.clear();
        continue;
      }
    }
    const std::size_t before = peer.partial.size();
    const std::size_t piece = std::min(wanted - before, kPiece);
    peer.partial.resize(before + piece);
    const ssize_t got = recv(peer.socket, peer.partial.data() + before, piece, MSG_DONTWAIT);
    peer.partial.resize(before + at(std::max<ssize_t>(got, 0)));
    if (got == 0) {
      return false;
    }
    if (got < 0) {
      return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    }
  }
}

void RankNetwork::send(std::int64_t to, RankWord word, std::span<const std::byte> body) {
  Peer& other = peer(to);
  const Header header{.word = word, .bytes = body.size()};
  const auto put = [&](std::span<const std::byte> bytes) {
    auto silent_since = Clock::now();
    while (!bytes.empty()) {
      const ssize_t sent = ::send(other.socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) {
        bytes = bytes.subspan(at(sent));
        silent_since = Clock::now();
      } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        check();  // it may have said why
        lost(to, "ended");
      } else if (Clock::now() - silent_since > timeout_) {
        lost(to, fmt::format("took nothing for {:g} s", static_cast<double>(timeout_.count()) / 1000));
      } else {
        wait_for(other.socket, POLLOUT, std::chrono::milliseconds(50));
      }
    }
  };
  put(std::as_bytes(std::span(&header, 1)));
  put(body);
}

void RankNetwork::send_all(RankWord word, std::span<const std::byte> body) {
  for (std::int64_t rank = 1; rank < ranks_; ++rank) {
    send(rank, word, body);
  }
}

Message failure_message(ExitCode code, std::string_view text) {
  const auto number = static_cast<std::int32_t>(code);
  Message body(sizeof number + text.size());
  std::memcpy(body.data(), &number, sizeof number);
  std::ranges::copy(bytes_of(text), body.begin() + sizeof number);
  return body;
}

/// An error that a rank reported is thrown as it was there.
void RankNetwork::raise_failures(const Peer& peer) const {
  for (const RankMessage& message : peer.ready) {
    if (message.word == RankWord::kFailed && message.body.size() >= sizeof(std::int32_t)) {
      std::int32_t code = 0;
      std::memcpy(&code, message.body.data(), sizeof code);
      throw Error(static_cast<ExitCode>(code), text_of(std::span(message.body).subspan(sizeof code)));
    }
  }
}

void RankNetwork::check() {
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (peers_[i] == nullptr) {
      continue;
    }
    Peer& other = *peers_[i];
    other.ended = other.ended || !read_available(other);
    raise_failures(other);
    if (other.ended && other.ready.empty()) {
      lost(rank_ == 0 ? static_cast<std::int64_t>(i) : 0, "ended");
    }
  }
}

RankMessage RankNetwork::receive(std::int64_t from, bool patient) {
  Peer& other = peer(from);
  const auto end = Clock::now() + timeout_;
  while (other.ready.empty()) {
    check();
    if (!other.ready.empty()) {
      break;
    }
    if (!patient && Clock::now() >= end) {
      lost(from, fmt::format("did not answer within {:g} s", static_cast<double>(timeout_.count()) / 1000));
    }
    wait_for(other.socket, POLLIN, std::chrono::milliseconds(20));
  }
  RankMessage message = std::move(other.ready.front());
  other.ready.pop_front();
  if (message.word == RankWord::kFailed) {
    other.ready.push_front(std::move(message));
    raise_failures(other);
  }
  return message;
}

Message RankNetwork::expect(std::int64_t from, RankWord word) {
  RankMessage message = receive(from);
  if (message.word != word) {
    throw InternalError(fmt::format("rank {} said {} where {} was due", from, static_cast<int>(message.word),
                                    static_cast<int>(word)));
  }
  return std::move(message.body);
}

std::vector<Message> RankNetwork::all_gather(std::span<const std::byte> mine) {
  std::vector<Message> all(at(ranks_));
  if (rank_ != 0) {
    send(0, RankWord::kShare, mine);
    for (Message& part : all) {
      part = expect(0, RankWord::kShare);
    }
    return all;
  }
  all[0].assign(mine.begin(), mine.end());
  for (std::int64_t rank = 1; rank < ranks_; ++rank) {
    all[at(rank)] = expect(rank, RankWord::kShare);
  }
  for (const Message& part : all) {
    send_all(RankWord::kShare, part);
  }
  return all;
}

}  // namespace moescope
