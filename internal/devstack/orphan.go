package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// serverProcess is the id of the PostgreSQL that runs on a data folder, or 0.
func serverProcess(data string) int {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid")) //nolint:gosec // G304: our data folder.
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !runsIn(pid, data) {
		return 0
	}
	return pid
}

// stopOrphan stops the PostgreSQL that a killed session has left on a data
// folder, if there is one, and clears away the mark of one that is gone: the
// number in it may be another process's by now, which PostgreSQL would take for
// itself and refuse to start. Only who holds the folder's lock may call it.
func stopOrphan(ctx context.Context, data string) error {
	pid := serverProcess(data)
	// "Fast" first, then "immediate" (PostgreSQL, chapter Shutting Down the Server).
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		if pid == 0 {
			break
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the PostgreSQL of an earlier session (process %d, data %s): %w", pid, data, err)
		}
		for end := time.Now().Add(10 * time.Second); pid != 0 && time.Now().Before(end); pid = serverProcess(data) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("stop the PostgreSQL of an earlier session (process %d, data %s): %w", pid, data, ctx.Err())
			case <-time.After(poll):
			}
		}
	}
	if pid != 0 {
		return fmt.Errorf("the PostgreSQL of an earlier session doesn't stop (process %d, data %s): end it by hand", pid, data)
	}
	if err := os.Remove(filepath.Join(data, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the mark of an earlier PostgreSQL: %w", err)
	}
	return nil
}
