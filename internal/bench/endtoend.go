package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
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

// endToEnd lets a worker of its own process and consumer group store the whole topic.
func (b *bench) endToEnd(ctx context.Context, l *load, f *figures) error {
	return b.onDatabase(ctx, f.Variant == "all", func(db *database) error {
		if err := db.checkpoint(ctx); err != nil {
			return err
		}
		group := fmt.Sprintf("%s-%d", l.topic, f.Round)
		w, err := startWorker(ctx, b.binary, filepath.Join(b.folder, group+".log"), append([]string{
			"AUDITSINK_KAFKA_BROKERS=" + strings.Join(b.kafka.Brokers(), ","),
			"AUDITSINK_KAFKA_TOPICS=" + l.topic,
			"AUDITSINK_KAFKA_GROUP=" + group,
			"AUDITSINK_POSTGRES_URL=" + db.url,
			"AUDITSINK_FLUSH_ROWS=" + strconv.Itoa(b.flushRows),
			"AUDITSINK_HTTP_ADDR=127.0.0.1:0",
		}, b.settings...))
		if err != nil {
			return err
		}
		progress, err := w.watch(ctx, db, int64(l.events))
		err = errors.Join(err, w.stop())
		switch {
		case ctx.Err() != nil: // the rest follows from that
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("%w\nthe worker's log ends:\n%s", err, w.logTail())
		}
		if err := db.verify(ctx, l.events); err != nil {
			return err
		}
		f.Worker = ratesOf(progress, 1, l.events) // its start and the group's are not what is measured
		f.CPUSeconds = (w.cmd.ProcessState.UserTime() + w.cmd.ProcessState.SystemTime()).Seconds()
		f.PeakMB = float64(w.peak) / 1e6
		return nil
	})
}

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
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-w.done:
			return nil, fmt.Errorf("the worker ended by itself: %w", errors.Join(w.err, errors.New("not told to")))
		case <-tick.C:
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

func (w *worker) logTail() []byte {
	log, err := os.ReadFile(w.log)
	if err != nil {
		return []byte(err.Error())
	}
	const most = 4096
	return log[max(0, len(log)-most):]
}
