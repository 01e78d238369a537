/* Runs llmmem in the Python interpreter of a program that was started on the simulated GPUs. */
#ifndef LLMMEM_GUEST_H
#define LLMMEM_GUEST_H

/* Import llmmem/execution/program/guest.py in the interpreter of this process, if it has one and the
 * environment names the directory of llmmem (environment.h). */
void sim_invite_guest(void);

#endif
