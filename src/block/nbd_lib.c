/* Finding libnbd's functions. */
#include "block/nbd_lib.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define NBD_LIB_NAME "libnbd.so.0"

static bool find(void *object, const char *name, void *ret_function)
{
    void *function = dlsym(object, name);

    /* POSIX lets a pointer to an object hold one to a function; ISO C has no cast for it. */
    memcpy(ret_function, &function, sizeof(function));
    return function != NULL;
}

static const struct {
    const char *name;
    size_t offset; /* of the pointer to it */
} functions[] = {
#define NBD_LIB_FUNCTION(name) {"nbd_" #name, offsetof(struct nbd_lib, name)},
    NBD_LIB_FUNCTIONS(NBD_LIB_FUNCTION)
#undef NBD_LIB_FUNCTION
};

int nbd_lib_open(struct nbd_lib *lib, struct err *err)
{
    bool good = true;

    lib->object = dlopen(NBD_LIB_NAME, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (lib->object == NULL) {
        return err_set(err, -ENOPKG, "disks of NBD servers need libnbd (Debian: libnbd0): %s",
                       dlerror());
    }
    for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
        good = find(lib->object, functions[i].name, (char *)lib + functions[i].offset) && good;
    }
    if (!good) {
        nbd_lib_close(lib);
        return err_set(err, -ENOPKG, "%s is too old: version 1.4 has what is needed", NBD_LIB_NAME);
    }
    return 0;
}

void nbd_lib_close(struct nbd_lib *lib)
{
    if (lib->object != NULL) {
        (void)dlclose(lib->object);
        lib->object = NULL;
    }
}
