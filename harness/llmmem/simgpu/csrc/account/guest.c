#include "account/guest.h"

#include "base/environment.h"

#include <dlfcn.h>
#include <stddef.h>

/* Runs in the program's __main__, so in a namespace of its own. Does nothing in a Python that llmmem does not
 * support. */
static const char JOIN[] = "exec('''\n"
                           "import os, sys\n"
                           "sys.path.insert(0, os.environ['LLMMEM_SIMULATED_GPU_HOME'])\n"
                           "try:\n"
                           "    from llmmem.execution.program.guest import join\n"
                           "except ImportError:\n"
                           "    pass\n"
                           "else:\n"
                           "    join()\n"
                           "finally:\n"
                           "    sys.path.pop(0)\n"
                           "''', {})";

static int join(void *run) {
    ((int (*)(const char *))run)(JOIN); /* it prints exceptions itself */
    return 0;
}

/* The caller may not hold the interpreter's lock, so the interpreter runs this when it can. */
void sim_invite_guest(void) {
    int (*call_later)(int (*)(void *), void *) = dlsym(RTLD_DEFAULT, "Py_AddPendingCall");
    void *run = dlsym(RTLD_DEFAULT, "PyRun_SimpleString");
    if (call_later && run && sim_wants_guest()) call_later(join, run);
}
