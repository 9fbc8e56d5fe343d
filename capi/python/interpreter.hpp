#pragma once

#include <cstddef>
#include <utility>

/// CPython's stable ABI, as much of it as calls from Python take, found by name in a process that runs it:
/// the library links no Python, so that one file serves every version of it, and programs without one.
namespace moescope::capi::python {

struct Object;  ///< PyObject; counts of references are its functions' business alone

/// PyMethodDef.
struct Method {
  const char* name = nullptr;
  Object* (*function)(Object* self, Object* const* arguments, std::ptrdiff_t count) = nullptr;
  int flags = 0;
  const char* doc = nullptr;
};
inline constexpr int kFastCall = 0x80;  ///< METH_FASTCALL

struct Interpreter {
  void (*inc_ref)(Object*) = nullptr;
  void (*dec_ref)(Object*) = nullptr;
  Object* (*type_of)(Object*) = nullptr;  ///< a new reference
  Object* (*get_attribute)(Object*, Object* name) = nullptr;
  Object* (*intern)(const char*) = nullptr;
  const char* (*text)(Object*, std::ptrdiff_t* size) = nullptr;
  long long (*integer)(Object*) = nullptr;
  void* (*pointer)(Object*) = nullptr;  ///< of an integer
  int (*is_true)(Object*) = nullptr;
  std::ptrdiff_t (*length)(Object*) = nullptr;
  Object* (*item)(Object*, std::ptrdiff_t) = nullptr;  ///< a new reference
  Object* (*new_tuple)(std::ptrdiff_t) = nullptr;
  int (*set_item)(Object* tuple, std::ptrdiff_t, Object* stolen) = nullptr;
  Object* (*call)(Object* callable, Object* const* arguments, std::size_t count, Object* names) = nullptr;
  Object* (*error)() = nullptr;  ///< borrowed; null: none
  void (*clear_error)() = nullptr;
  Object* (*new_function)(const Method*, Object* self, Object* module) = nullptr;
  void* (*capsule)(Object*, const char* name) = nullptr;
  void* (*release_lock)() = nullptr;
  void (*take_lock)(void*) = nullptr;
  Object* none = nullptr;
  Object* yes = nullptr;  ///< True

  /// Null where the process runs no Python, or one without these names.
  static const Interpreter* running();

  Object* new_none() const {
    inc_ref(none);
    return none;
  }
};

/// Owns a reference.
class Reference {
 public:
  Reference() = default;
  Reference(const Interpreter& python, Object* owned) : python_(&python), object_(owned) {}
  Reference(Reference&& other) noexcept : python_(other.python_), object_(other.release()) {}
  Reference& operator=(Reference&& other) noexcept {
    std::swap(python_, other.python_);
    std::swap(object_, other.object_);
    return *this;
  }
  ~Reference() {
    if (object_ != nullptr) {
      python_->dec_ref(object_);
    }
  }
  Object* get() const { return object_; }
  Object* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  const Interpreter* python_ = nullptr;
  Object* object_ = nullptr;
};

/// Lets other threads run Python while this lives.
class Unlocked {
 public:
  explicit Unlocked(const Interpreter& python) : python_(python), state_(python.release_lock()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() { python_.take_lock(state_); }

 private:
  const Interpreter& python_;
  void* state_;
};

}  // namespace moescope::capi::python
