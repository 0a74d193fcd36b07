/* As cuda_fp16.h, which says why. */
#pragma once
typedef struct {
    unsigned short bits;
} __nv_bfloat16;
