/* The toolkit's header checks the version of the compiler; nothing is compiled for a GPU here. */
#ifndef __HOST_CONFIG_H__
#define __HOST_CONFIG_H__
#include "host_defines.h"
#endif
