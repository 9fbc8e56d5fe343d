#include "capi/python/interpreter.hpp"

#include <dlfcn.h>

namespace moescope::capi::python {
namespace {

template <class Pointer>
bool find(const char* name, Pointer& found) {
  found = reinterpret_cast<Pointer>(dlsym(RTLD_DEFAULT, name));
  return found != nullptr;
}

}  // namespace

const Interpreter* Interpreter::running() {
  static const struct Found {
    Interpreter python;
    bool whole = false;
    Found() {
      Interpreter& p = python;
      whole = find("Py_IncRef", p.inc_ref) && find("Py_DecRef", p.dec_ref) &&
              find("PyObject_Type", p.type_of) && find("PyObject_GetAttr", p.get_attribute) &&
              find("PyUnicode_InternFromString", p.intern) && find("PyUnicode_AsUTF8AndSize", p.text) &&
              find("PyLong_AsLongLong", p.integer) && find("PyLong_AsVoidPtr", p.pointer) &&
              find("PyObject_IsTrue", p.is_true) && find("PyObject_Size", p.length) &&
              find("PySequence_GetItem", p.item) && find("PyTuple_New", p.new_tuple) &&
              find("PyTuple_SetItem", p.set_item) && find("PyObject_Vectorcall", p.call) &&
              find("PyErr_Occurred", p.error) && find("PyErr_Clear", p.clear_error) &&
              find("PyCFunction_NewEx", p.new_function) && find("PyCapsule_GetPointer", p.capsule) &&
              find("PyEval_SaveThread", p.release_lock) && find("PyEval_RestoreThread", p.take_lock) &&
              find("_Py_NoneStruct", p.none) && find("_Py_TrueStruct", p.yes);
    }
  } found;
  return found.whole ? &found.python : nullptr;
}

}  // namespace moescope::capi::python
