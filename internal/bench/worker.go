package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// pollInterval is how often the positions are read.
	pollInterval = 20 * time.Millisecond
	// stalled is after how long without progress a worker is given up.
	stalled = 90 * time.Second
)

// worker is an auditsink process. Its fields belong to the goroutine that started it, err until done is closed.
type worker struct {
	cmd  *exec.Cmd
	term func() error // sends SIGTERM once: a second one kills
	log  string
	done chan struct{}
	err  error
	peak int64 // of its resident memory, in bytes
}

// startWorker runs `auditsink run` with nothing but env as its environment. When ctx ends it is told to stop.
func startWorker(ctx context.Context, binary, logPath string, env []string) (*worker, error) {
	log, err := os.Create(logPath) //nolint:gosec // in our own folder
	if err != nil {
		return nil, fmt.Errorf("open the worker's log: %w", err)
	}
	defer log.Close() //nolint:errcheck // the child has its own handle; this one writes nothing
	cmd := exec.CommandContext(ctx, binary, "run")
	cmd.Env, cmd.Stdout, cmd.Stderr = env, log, log
	term := sync.OnceValue(func() error { return cmd.Process.Signal(syscall.SIGTERM) })
	cmd.Cancel = term
	cmd.WaitDelay = 20 * time.Second
	// A ^C is for us, who then tell it. It never outlives us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	w := &worker{cmd: cmd, term: term, log: logPath, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the thread that started the child ends, not the process (prctl(2)).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			w.err = cmd.Wait()
			close(w.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the worker: %w", err)
	}
	return w, nil
}

// watch notes how the worker gets on, until it has stored so many records.
func (w *worker) watch(ctx context.Context, db *database, records int64) ([]point, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	progress := []point{{at: time.Now()}}
	for {
		if err := w.wait(ctx, tick.C); err != nil {
			return nil, err
		}
		stored, err := db.stored(ctx)
		if err != nil {
			return nil, err
		}
		last := progress[len(progress)-1]
		if now := time.Now(); stored != last.stored {
			progress = append(progress, point{now, stored})
		} else if now.Sub(last.at) > stalled {
			return nil, fmt.Errorf("the worker has stored %d of %d records, and none for %s", stored, records, stalled)
		}
		if stored >= records {
			return progress, nil
		}
	}
}

// stop tells the worker to stop, as Kubernetes would, and waits until it has.
func (w *worker) stop() error {
	w.measure()
	// Too late where it has ended by itself; then its own error says more.
	if err := w.term(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the worker: %w", err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		select {
		case <-w.done:
			if w.err != nil {
				return fmt.Errorf("the worker: %w", w.err)
			}
			return nil
		case <-tick.C:
			w.measure()
		case <-deadline:
			return errors.Join(errors.New("the worker did not stop within a minute"), w.cmd.Process.Kill())
		}
	}
}

// kill ends the worker with SIGKILL, and waits until it has ended.
func (w *worker) kill() error {
	if err := w.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill the worker: %w", err)
	}
	<-w.done
	return nil
}

// measure notes the most memory the worker had so far. It is the kernel's own high-water mark, VmHWM of proc_pid_status(5), and
// not ru_maxrss, which a child inherits from a parent as large as we are.
func (w *worker) measure() {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		return // it has just ended
	}
	for line := range bytes.Lines(status) {
		if text, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			var kib int64
			if _, err := fmt.Sscan(string(text), &kib); err == nil {
				w.peak = max(w.peak, kib<<10)
			}
		}
	}
}

// cpuSeconds is the user and system time of a worker that has ended.
func (w *worker) cpuSeconds() float64 {
	return (w.cmd.ProcessState.UserTime() + w.cmd.ProcessState.SystemTime()).Seconds()
}

// address waits until the worker answers HTTP and returns its base URL, which is in its log.
func (w *worker) address(ctx context.Context) (string, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		log, err := os.ReadFile(w.log)
		if err != nil {
			return "", fmt.Errorf("read the worker's log: %w", err)
		}
		for line := range bytes.Lines(log) {
			var entry struct{ Metrics string }
			if json.Unmarshal(line, &entry) == nil && entry.Metrics != "" {
				return strings.TrimSuffix(entry.Metrics, "/metrics"), nil
			}
		}
		if err := w.wait(ctx, tick.C); err != nil {
			return "", err
		}
	}
}

// wait waits for the next tick. The error says that the worker ended by itself, or ctx did.
func (w *worker) wait(ctx context.Context, tick <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.done:
		return fmt.Errorf("the worker ended by itself: %w", errors.Join(w.err, errors.New("not told to")))
	case <-tick:
		return nil
	}
}

// awaitReady waits until the worker says that it takes in events, and returns its base URL.
func (w *worker) awaitReady(ctx context.Context) (string, error) {
	address, err := w.address(ctx)
	if err != nil {
		return "", err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if status, err := get(ctx, address+"/readyz"); err == nil && status == http.StatusOK {
			return address, nil
		}
		if err := w.wait(ctx, tick.C); err != nil {
			return "", err
		}
	}
}

// get asks for a page and returns the status of the answer.
func get(ctx context.Context, url string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("ask for %s: %w", url, err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("ask for %s: %w", url, err)
	}
	return answer.StatusCode, answer.Body.Close()
}

func (w *worker) logTail() []byte {
	log, err := os.ReadFile(w.log)
	if err != nil {
		return []byte(err.Error())
	}
	const most = 4096
	return log[max(0, len(log)-most):]
}
