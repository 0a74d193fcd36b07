// Includes libjpeg-turbo's headers, and refuses those of other libraries with the same names.
//
// IJG's libjpeg has neither the functions that skip rows and columns nor the same pixels.  mozjpeg is made for writing small
// files; its decoder is an older libjpeg-turbo's, which nothing here tests.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include <jpeglib.h>

#include <jerror.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "vit.data._native is not built: jpeglib.h is not libjpeg-turbo's (IJG's libjpeg?); install libjpeg-turbo's headers instead"
#endif
#ifdef JPEG_C_PARAM_SUPPORTED
#error "vit.data._native is not built: jpeglib.h is mozjpeg's; install libjpeg-turbo's headers instead"
#endif
