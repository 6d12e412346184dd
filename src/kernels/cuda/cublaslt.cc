#include "kernels/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>

namespace mm01::cuda {
namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
                                  "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.12"};
constexpr size_t kMostWorkspace = size_t{64} << 20;
constexpr int64_t kTypicalRows = 8192;  // for which kernels are chosen

struct Library {
  cublasLtHandle_t handle = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  Status status;
};

Library Load() {
  Library lib;
  void* file = nullptr;
  for (const char* name : kNames) {
    file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (file) break;
  }
  if (!file) {
    lib.status = Status::Unsupported(
        "matrix products on a GPU need cuBLAS 13 or 12: neither libcublasLt.so.13 nor "
        "libcublasLt.so.12 is where the system looks for libraries, or in /usr/local/cuda/lib64");
    return lib;
  }
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    if (!function && lib.status.ok()) {
      lib.status = Status::Unsupported(std::string("the cuBLASLt found has no ") + name);
    }
  };
  find(lib.create, "cublasLtCreate");
  find(lib.matmul, "cublasLtMatmul");
  find(lib.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lib.desc_create, "cublasLtMatmulDescCreate");
  find(lib.desc_destroy, "cublasLtMatmulDescDestroy");
  find(lib.desc_set, "cublasLtMatmulDescSetAttribute");
  find(lib.layout_create, "cublasLtMatrixLayoutCreate");
  find(lib.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(lib.preference_create, "cublasLtMatmulPreferenceCreate");
  find(lib.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(lib.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  if (lib.status.ok() && lib.create(&lib.handle) != CUBLAS_STATUS_SUCCESS) {
    lib.status = Status::Unsupported("cuBLASLt does not start on this GPU");
  }
  return lib;
}

const Library& TheLibrary() {
  static const Library library = Load();
  return library;
}

void CheckLibrary(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw DeviceError("cuBLASLt reports error " + std::to_string(static_cast<int>(status)));
  }
}

cudaDataType_t TypeOf(DType type) {
  return type == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// The library counts columns first, so it works out the transpose: out^T [N, M] = w x^T.
struct Problem {
  const Library& lib;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;

  Problem(const Library& library, const LibraryGemm& p, int64_t rows) : lib(library) {
    CheckLibrary(lib.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    CheckLibrary(lib.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    const auto n = static_cast<uint64_t>(p.n), k = static_cast<uint64_t>(p.k);
    const auto m = static_cast<uint64_t>(rows);
    CheckLibrary(lib.layout_create(&w, TypeOf(p.in_type), k, n, p.ldw));
    CheckLibrary(lib.layout_create(&x, TypeOf(p.in_type), k, m, p.ldx));
    CheckLibrary(lib.layout_create(&out, TypeOf(p.out_type), n, m, p.ldo));
  }
  ~Problem() {
    if (out) lib.layout_destroy(out);
    if (x) lib.layout_destroy(x);
    if (w) lib.layout_destroy(w);
    if (desc) lib.desc_destroy(desc);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
};

struct Choice {
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace;
};

std::optional<Choice> Choose(const Library& lib, const LibraryGemm& p, int64_t rows) {
  const Problem problem(lib, p, rows);
  cublasLtMatmulPreference_t preference = nullptr;
  CheckLibrary(lib.preference_create(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    CheckLibrary(lib.preference_set(preference, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
  for (const auto alignment :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(alignment, uint32_t{16});
  }
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status =
      lib.heuristic(lib.handle, problem.desc, problem.w, problem.x, problem.out, problem.out,
                    preference, 1, &best, &found);
  lib.preference_destroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) return std::nullopt;
  return Choice{best.algo, best.workspaceSize};
}

// Types, N, K, and M where the kernel for large M does not take it; 0 otherwise.
using Key = std::tuple<DType, DType, int64_t, int64_t, int64_t>;

std::optional<Choice> ChooseOnce(const Library& lib, const LibraryGemm& p, int64_t rows, Key key) {
  static std::mutex lock;
  static std::map<Key, std::optional<Choice>> chosen;
  const std::scoped_lock guard(lock);
  const auto [at, is_new] = chosen.try_emplace(key);
  if (is_new) at->second = Choose(lib, p, rows);
  return at->second;
}

bool Multiply(Queue& queue, const Library& lib, const LibraryGemm& p, const Choice& choice) {
  const Problem problem(lib, p, p.m);
  Scratch scratch(queue);
  const auto bytes = static_cast<int64_t>(choice.workspace);
  void* workspace = bytes > 0 ? scratch.Get<std::byte>(bytes) : nullptr;
  const float one = 1.0f, zero = 0.0f;
  const cublasStatus_t status = lib.matmul(
      lib.handle, problem.desc, &one, p.w, problem.w, p.x, problem.x, &zero, p.out, problem.out,
      p.out, problem.out, &choice.algorithm, workspace, choice.workspace, queue.stream());
  const bool unfit = status == CUBLAS_STATUS_NOT_SUPPORTED ||
                     status == CUBLAS_STATUS_INVALID_VALUE || status == CUBLAS_STATUS_ARCH_MISMATCH;
  if (!unfit) CheckLibrary(status);
  return !unfit;
}

}  // namespace

Status LoadCublasLt() {
  return TheLibrary().status;
}

bool MultiplyByLibrary(Queue& queue, const LibraryGemm& p) {
  const Library& lib = TheLibrary();
  if (!lib.status.ok()) throw DeviceError(lib.status.message());
  const Key any_m{p.in_type, p.out_type, p.n, p.k, 0};
  const auto general = ChooseOnce(lib, p, kTypicalRows, any_m);
  if (general && Multiply(queue, lib, p, *general)) return true;
  const Key this_m{p.in_type, p.out_type, p.n, p.k, p.m};
  const auto own = ChooseOnce(lib, p, p.m, this_m);
  return own && Multiply(queue, lib, p, *own);
}

}  // namespace mm01::cuda
