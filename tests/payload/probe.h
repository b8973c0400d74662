/* What the parts of the probe share: one act is one attempt, with one line of outcome. */
#ifndef PROBE_H
#define PROBE_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Returns 0 when the act succeeded, -1 with errno set when it was refused. `argv[0]` is the act. */
typedef int (*act_fn)(int argc, char **argv);

struct act {
    const char *name;
    act_fn run;
};

/* What the line says after `ok`; acts may fill it in. */
extern char detail[512];

extern const struct act file_acts[];
extern const struct act mount_acts[];
extern const struct act process_acts[];
extern const struct act kernel_acts[];
extern const struct act net_acts[];
extern const struct act limit_acts[];
extern const struct act session_acts[];

/* The argument at `i`, or `fallback` where the caller gave fewer. */
const char *arg(int argc, char **argv, int i, const char *fallback);

/* The same as a number: decimal, or hexadecimal with 0x. */
long number(int argc, char **argv, int i, long fallback);

/* Runs CMD as a subreaper and reports what was left behind; see supervise.c. */
int supervise(int argc, char **argv);

#endif
