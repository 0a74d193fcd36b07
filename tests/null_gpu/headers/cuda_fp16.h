/* cuBLAS and NCCL declare functions with this type; CUDA's own header needs nv/target, which not all wheels have. */
#pragma once
typedef struct {
    unsigned short bits;
} __half;
typedef __half half;
