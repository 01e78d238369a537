#include "base/environment.h"


#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static bool known, guest;
static char directory[4096];

static void read_environment(void) {
    const char *text = getenv("LLMMEM_SIMULATED_GPU_LEDGERS");
    int length = snprintf(directory, sizeof directory, "%s", text ? text : "");
    if (length < 0 || (size_t)length >= sizeof directory) directory[0] = 0;
    guest = getenv("LLMMEM_SIMULATED_GPU_HOME") != NULL;
    known = true;
}

static void know(void) {
    if (!known) read_environment();
}

__attribute__((constructor)) static void begin(void) {
    know(); /* the constructor of another file may have called it already */
    pthread_atfork(NULL, NULL, read_environment);
}

const char *sim_ledger_directory(void) {
    know();
    return directory[0] ? directory : NULL;
}

bool sim_wants_guest(void) {
    know();
    return guest;
}
