// Which libjpeg is in use: at run time it may be another one than when this was compiled.

#include <csetjmp>
#include <cstdint>
#include <cstring>

#include <dlfcn.h>

#include "jpeg_damage.h"

namespace {

#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)
constexpr char BUILT_WITH[] = TEXT(LIBJPEG_TURBO_VERSION);

}  // namespace

// The version of the libjpeg-turbo whose headers were used.
extern "C" const char* vit_built_with() { return BUILT_WITH; }

// The path of the file that has libjpeg's functions, into `path` (`size` bytes).  Returns 0 if it has the structures that this
// was compiled for; otherwise `message` (JMSG_LENGTH_MAX) says what differs.  To be called before any other function.
extern "C" int64_t vit_libjpeg(char* path, int64_t size, char* message) {
    Dl_info found;
    path[0] = message[0] = 0;
    if (dladdr(reinterpret_cast<void*>(&jpeg_CreateDecompress), &found) && found.dli_fname)
        std::strncat(path, found.dli_fname, static_cast<size_t>(size) - 1);
    jpeg_decompress_struct info;
    damage::Failure failure;
    failure.reset(nullptr);
    failure.install(*reinterpret_cast<jpeg_common_struct*>(&info));
    if (setjmp(failure.return_point)) {  // of another version, or with structures of another size
        std::memcpy(message, failure.message, sizeof failure.message);
        return 1;
    }
    jpeg_create_decompress(&info);
    jpeg_destroy_decompress(&info);
    return 0;
}
