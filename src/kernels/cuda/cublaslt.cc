#include "kernels/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
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

// The library counts columns first, so it works out the transpose: c^T [N, M] = b^T a^T.
struct Problem {
  const Library& lib;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t b = nullptr, a = nullptr, c = nullptr;

  Problem(const Library& library, const LibraryMatMul& p) : lib(library) {
    CheckLibrary(lib.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    if (p.transpose_b) {
      CheckLibrary(
          lib.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    }
    if (p.transpose_a) {
      CheckLibrary(
          lib.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, &transposed, sizeof(transposed)));
    }
    const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n),
               k = static_cast<uint64_t>(p.k);
    const cudaDataType_t in = TypeOf(p.in_type);
    CheckLibrary(p.transpose_b ? lib.layout_create(&b, in, k, n, p.ldb)
                               : lib.layout_create(&b, in, n, k, p.ldb));
    CheckLibrary(p.transpose_a ? lib.layout_create(&a, in, m, k, p.lda)
                               : lib.layout_create(&a, in, k, m, p.lda));
    CheckLibrary(lib.layout_create(&c, TypeOf(p.out_type), n, m, p.ldc));
  }
  ~Problem() {
    if (c) lib.layout_destroy(c);
    if (a) lib.layout_destroy(a);
    if (b) lib.layout_destroy(b);
    if (desc) lib.desc_destroy(desc);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;
};

struct Choice {
  cublasLtMatmulAlgo_t algorithm;
  size_t workspace;
};

// `reduction`: how parts of k that different blocks worked out may be added.
std::optional<Choice> Choose(const Library& lib, const LibraryMatMul& p, uint32_t reduction) {
  const Problem problem(lib, p);
  cublasLtMatmulPreference_t preference = nullptr;
  CheckLibrary(lib.preference_create(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    CheckLibrary(lib.preference_set(preference, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction);
  for (const auto alignment :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(alignment, uint32_t{16});
  }
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = lib.heuristic(lib.handle, problem.desc, problem.b, problem.a,
                                              problem.c, problem.c, preference, 1, &best, &found);
  lib.preference_destroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) return std::nullopt;
  return Choice{best.algo, best.workspaceSize};
}

// Types, which of a and b is transposed and whether c is added to, the reduction, and the sizes
// that the kernel is chosen for. M is 0 where it is not looked at.
using Key = std::tuple<DType, DType, int, uint32_t, int64_t, int64_t, int64_t>;

Key KeyOf(const LibraryMatMul& p, uint32_t reduction, int64_t m) {
  const int form = (p.transpose_a ? 1 : 0) + (p.transpose_b ? 2 : 0) + (p.add ? 4 : 0);
  return {p.in_type, p.out_type, form, reduction, m, p.n, p.k};
}

// `as` are the sizes to choose for.
std::optional<Choice> ChooseOnce(const Library& lib, const LibraryMatMul& as, uint32_t reduction,
                                 const Key& key) {
  static std::mutex lock;
  static std::map<Key, std::optional<Choice>> chosen;
  const std::scoped_lock guard(lock);
  const auto [at, is_new] = chosen.try_emplace(key);
  if (is_new) at->second = Choose(lib, as, reduction);
  return at->second;
}

bool Multiply(Queue& queue, const Library& lib, const LibraryMatMul& p, const Choice& choice) {
  const Problem problem(lib, p);
  Scratch scratch(queue);
  const auto bytes = static_cast<int64_t>(choice.workspace);
  void* workspace = bytes > 0 ? scratch.Get<std::byte>(bytes) : nullptr;
  const float one = 1.0f, carried = p.add ? 1.0f : 0.0f;
  const cublasStatus_t status = lib.matmul(
      lib.handle, problem.desc, &one, p.b, problem.b, p.a, problem.a, &carried, p.c, problem.c, p.c,
      problem.c, &choice.algorithm, workspace, choice.workspace, queue.stream());
  const bool unfit = status == CUBLAS_STATUS_NOT_SUPPORTED ||
                     status == CUBLAS_STATUS_INVALID_VALUE || status == CUBLAS_STATUS_ARCH_MISMATCH;
  if (!unfit) CheckLibrary(status);
  return !unfit;
}

const Library& WantedLibrary() {
  const Library& lib = TheLibrary();
  if (!lib.status.ok()) throw DeviceError(lib.status.message());
  return lib;
}

// The next size up that has three bits after its first.
int64_t RoundedUp(int64_t n) {
  int64_t step = 1;
  while (n / step >= 16) step *= 2;
  return (n + step - 1) / step * step;
}

}  // namespace

Status LoadCublasLt() {
  return TheLibrary().status;
}

bool MultiplyByLibrary(Queue& queue, const LibraryGemm& g) {
  const Library& lib = WantedLibrary();
  const LibraryMatMul p{.a = g.x,
                        .lda = g.ldx,
                        .b = g.w,
                        .ldb = g.ldw,
                        .c = g.out,
                        .ldc = g.ldo,
                        .m = g.m,
                        .n = g.n,
                        .k = g.k,
                        .in_type = g.in_type,
                        .out_type = g.out_type,
                        .transpose_b = true};
  constexpr uint32_t kNone = CUBLASLT_REDUCTION_SCHEME_NONE;
  LibraryMatMul typical = p;
  typical.m = kTypicalRows;
  const auto general = ChooseOnce(lib, typical, kNone, KeyOf(p, kNone, 0));
  if (general && Multiply(queue, lib, p, *general)) return true;
  const auto own = ChooseOnce(lib, p, kNone, KeyOf(p, kNone, p.m));
  return own && Multiply(queue, lib, p, *own);
}

bool MatMulByLibrary(Queue& queue, const LibraryMatMul& p) {
  const Library& lib = WantedLibrary();
  constexpr uint32_t kInOrder =
      CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  LibraryMatMul larger = p;
  larger.m = RoundedUp(p.m), larger.n = RoundedUp(p.n), larger.k = RoundedUp(p.k);
  // Rows as far apart as the larger sizes need them.
  const auto room = [](int64_t& ld, int64_t width) { ld = std::max(ld, (width + 7) / 8 * 8); };
  room(larger.lda, p.transpose_a ? larger.m : larger.k);
  room(larger.ldb, p.transpose_b ? larger.k : larger.n);
  room(larger.ldc, larger.n);
  const auto general = ChooseOnce(lib, larger, kInOrder, KeyOf(larger, kInOrder, larger.m));
  if (general && Multiply(queue, lib, p, *general)) return true;
  const auto own = ChooseOnce(lib, p, kInOrder, KeyOf(p, kInOrder, p.m));
  return own && Multiply(queue, lib, p, *own);
}

}  // namespace mm01::cuda
