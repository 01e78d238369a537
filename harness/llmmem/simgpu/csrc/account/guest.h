/* llmmem's part in the Python interpreter of a program that was started on the simulated GPUs. */
#ifndef LLMMEM_GUEST_H
#define LLMMEM_GUEST_H

/* Have llmmem/program/guest.py join the interpreter of this process, if it has one and its
 * environment said where llmmem lies when it began (environment.h). */
void sim_invite_guest(void);

#endif
