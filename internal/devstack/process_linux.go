package devstack

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// childAttributes start the child as the owner, out of reach of the terminal's
// Ctrl-C, and have the kernel tell it when its parent has died.
func childAttributes(o *owner) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if o != nil {
		a.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)} //nolint:gosec // G115: ids are 32 bits.
	}
	return a
}

// runsIn tells whether a process lives and works in a folder, as PostgreSQL
// does in its data folder. A zombie works nowhere.
func runsIn(pid int, dir string) bool {
	at, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	dir, err = filepath.EvalSymlinks(dir)
	return err == nil && at == dir
}
