//go:build !linux

package devstack

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes start the child as the owner, out of reach of the terminal's
// Ctrl-C. Its standard input ends with its parent.
func childAttributes(o *owner) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	if o != nil {
		a.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)} //nolint:gosec // G115: ids are 32 bits.
	}
	return a
}

// runsIn tells whether a process lives and is the PostgreSQL of a data folder,
// which the stack names to it by -D.
func runsIn(pid int, dir string) bool {
	//nolint:gosec // G204: a number.
	out, err := exec.CommandContext(context.Background(), "ps", "-o", "args=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), "postgres") && strings.Contains(string(out), dir)
}
