// cuBLAS and cuBLASLt: each matrix product is one launch.
#include <cublasLt.h>
#include <cublas_v2.h>

#include <cstring>

#include "contents.h"
#include "counters.h"

namespace {

constexpr cublasStatus_t OK = CUBLAS_STATUS_SUCCESS;
thread_local cudaStream_t handle_stream = nullptr;  // torch sets it before each call

const char* type_name(cudaDataType type) {
    return type == CUDA_R_32F ? "float32" : type == CUDA_R_16BF ? "bfloat16" : type == CUDA_R_16F ? "float16" : "other";
}

std::string shape(int m, int n, int k) {
    return " " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k);
}

cublasStatus_t product(const std::string& name) {
    run_kernel(name.c_str(), handle_stream);
    return OK;
}

}  // namespace

EXPORT cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
    *handle = static_cast<cublasHandle_t>(new_handle());
    return OK;
}

EXPORT cublasStatus_t cublasDestroy_v2(cublasHandle_t) { return OK; }

EXPORT cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t stream) {
    handle_stream = stream;
    return OK;
}

EXPORT cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, size_t) { return OK; }
EXPORT cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return OK; }
EXPORT cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t, cublasPointerMode_t) { return OK; }

EXPORT cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return OK;
}

EXPORT cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return OK;
}

// Products.

EXPORT cublasStatus_t cublasGemmEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*, const void*,
    cudaDataType type, int, const void*, cudaDataType, int, const void*, void*, cudaDataType, int, cublasComputeType_t,
    cublasGemmAlgo_t) {
    return product(std::string("cublasGemmEx ") + type_name(type) + shape(m, n, k));
}

EXPORT cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*, const void*,
    cudaDataType type, int, long long, const void*, cudaDataType, int, long long, const void*, void*, cudaDataType, int,
    long long, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return product(std::string("cublasGemmStridedBatchedEx ") + type_name(type) + shape(m, n, k));
}

EXPORT cublasStatus_t cublasSgemmEx(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*, const void*, cudaDataType,
    int, const void*, cudaDataType, int, const float*, void*, cudaDataType, int) {
    return product("cublasSgemmEx" + shape(m, n, k));
}

EXPORT cublasStatus_t cublasSgemm_v2(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*, const float*, int,
    const float*, int, const float*, float*, int) {
    return product("cublasSgemm" + shape(m, n, k));
}

EXPORT cublasStatus_t cublasSgemmStridedBatched(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*, const float*, int,
    long long, const float*, int, long long, const float*, float*, int, long long, int) {
    return product("cublasSgemmStridedBatched" + shape(m, n, k));
}

EXPORT cublasStatus_t cublasDgemm_v2(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const double*, const double*, int,
    const double*, int, const double*, double*, int) {
    return product("cublasDgemm" + shape(m, n, k));
}

EXPORT cublasStatus_t cublasDgemmStridedBatched(
    cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const double*, const double*, int,
    long long, const double*, int, long long, const double*, double*, int, long long, int) {
    return product("cublasDgemmStridedBatched" + shape(m, n, k));
}

EXPORT cublasStatus_t cublasSgemv_v2(
    cublasHandle_t, cublasOperation_t, int, int, const float*, const float*, int, const float*, int, const float*,
    float*, int) {
    return product("cublasSgemv");
}

// cuBLASLt.

EXPORT cublasStatus_t cublasLtMatmulDescCreate(
    cublasLtMatmulDesc_t* descriptor, cublasComputeType_t, cudaDataType_t) {
    *descriptor = static_cast<cublasLtMatmulDesc_t>(new_handle());
    return OK;
}

EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t) { return OK; }

EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void*, size_t) {
    return OK;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayout_t* layout, cudaDataType, uint64_t, uint64_t, int64_t) {
    *layout = static_cast<cublasLtMatrixLayout_t>(new_handle());
    return OK;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t) { return OK; }

EXPORT cublasStatus_t cublasLtMatrixLayoutSetAttribute(
    cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, const void*, size_t) {
    return OK;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    *preference = static_cast<cublasLtMatmulPreference_t>(new_handle());
    return OK;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) { return OK; }

EXPORT cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void*, size_t) {
    return OK;
}

EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t* result, int* found) {
    memset(result, 0, sizeof *result);
    result->state = OK;
    *found = 1;
    return OK;
}

EXPORT cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t, const void*,
    cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t,
    const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t stream) {
    run_kernel("cublasLtMatmul", stream);
    return OK;
}
