/* What CUDA's headers need from crt/host_defines.h for a C or C++ compiler other than nvcc.
 *
 * The wheels that torch depends on have all other headers, but not the folder crt of the CUDA toolkit. */
#ifndef __HOST_DEFINES_H__
#define __HOST_DEFINES_H__

#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDART_CB
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __grid_constant__
#define __nv_pure__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __annotate__(attribute)
#define __location__(attribute)
#define __launch_bounds__(...)
#define __specialization_static
#define __no_return__ __attribute__((noreturn))
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#undef __forceinline__
#define __forceinline__ __inline__ __attribute__((always_inline))

#endif
