/* NCCL's header includes it, but uses nothing of it; as cuda_fp16.h. */
#pragma once
