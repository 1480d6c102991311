package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// pollInterval is how often a condition is looked at that is waited for.
	pollInterval = 20 * time.Millisecond
	// followInterval is how often a sink's progress is looked at: every 20 ms cost 1.3 % of two cores, the server's part not counted.
	followInterval = 50 * time.Millisecond
	// stalled is after how long without progress a sink is given up.
	stalled = 90 * time.Second
)

// process is a sink's process. Its fields belong to the goroutine that started it, err until done is closed.
type process struct {
	name    string // what it is, for errors
	cmd     *exec.Cmd
	term    func() error // sends SIGTERM once: a second one kills
	stopped int          // the exit code of one that was told to stop
	log     string
	done    chan struct{}
	err     error
	peak    int64   // of its resident memory, in bytes
	busy    float64 // CPU seconds from the first progress that follow saw to the last
}

// startProcess starts a sink, which has to be a command of ctx. When ctx ends it is told to stop. Its output goes to a file.
func startProcess(name string, cmd *exec.Cmd, logPath string) (*process, error) {
	log, err := os.Create(logPath) //nolint:gosec // in our own folder
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer log.Close() //nolint:errcheck // the child has its own handle; this one writes nothing
	cmd.Stdout, cmd.Stderr = log, log
	term := sync.OnceValue(func() error { return cmd.Process.Signal(syscall.SIGTERM) })
	cmd.Cancel = term
	cmd.WaitDelay = 20 * time.Second
	// A ^C is for us, who then tell it. It never outlives us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &process{name: name, cmd: cmd, term: term, log: logPath, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the thread that started the child ends, not the process (prctl(2)).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// follow hands over how many records are stored each time that it is more, from none on, until there are so many.
func (p *process) follow(ctx context.Context, stored func(context.Context) (int64, error), records int64, moved func(point) error) error {
	tick := time.NewTicker(followInterval)
	defer tick.Stop()
	last := point{at: time.Now()}
	if err := moved(last); err != nil {
		return err
	}
	var before float64
	for {
		if err := p.wait(ctx, tick.C); err != nil {
			return err
		}
		now, err := stored(ctx)
		if err != nil {
			return err
		}
		if at := time.Now(); now != last.stored {
			if last.stored == 0 {
				before = p.cpuSoFar()
			}
			last = point{at, now}
			if err := moved(last); err != nil {
				return err
			}
		} else if at.Sub(last.at) > stalled {
			return fmt.Errorf("%s has stored %d of %d records, and none for %s", p.name, now, records, stalled)
		}
		if now >= records {
			p.busy = p.cpuSoFar() - before
			return nil
		}
	}
}

// stop tells the sink to stop, as Kubernetes would, and waits until it has.
func (p *process) stop() error {
	p.measure()
	// Too late where it has ended by itself; then its own error says more.
	if err := p.term(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		select {
		case <-p.done:
			if p.err != nil && p.cmd.ProcessState.ExitCode() != p.stopped {
				return fmt.Errorf("%s: %w", p.name, p.err)
			}
			return nil
		case <-tick.C:
			p.measure()
		case <-deadline:
			return errors.Join(fmt.Errorf("%s did not stop within a minute", p.name), p.cmd.Process.Kill())
		}
	}
}

// end stops a sink after what was measured has ended with err. The end of its log is in the error.
func (p *process) end(ctx context.Context, err error) error {
	err = errors.Join(err, p.stop())
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil: // the rest follows from that
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w\nthe log of %s ends:\n%s", err, p.name, p.logTail())
}

// kill ends the process with SIGKILL, and waits until it has ended.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// measure notes the most memory the sink had so far. It is the kernel's own high-water mark, VmHWM of proc_pid_status(5), and
// not ru_maxrss, which a child inherits from a parent as large as we are.
func (p *process) measure() {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return // it has just ended
	}
	for line := range bytes.Lines(status) {
		if text, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			var kib int64
			if _, err := fmt.Sscan(string(text), &kib); err == nil {
				p.peak = max(p.peak, kib<<10)
			}
		}
	}
}

// cpuSeconds is the user and system time of a sink that has ended.
func (p *process) cpuSeconds() float64 {
	return (p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()).Seconds()
}

// cpuSoFar is the user and system time of a sink that runs, in steps of 10 ms: utime and stime of proc_pid_stat(5). Of one that has just ended it
// is 0, and wait will tell.
func (p *process) cpuSoFar() float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The second field is the name in parentheses, which may itself contain any character.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, perSecond = 11, 100 // 14th field of all; USER_HZ, which is 100 wherever Go runs
	var user, system float64
	if len(fields) > utime+1 {
		if _, err := fmt.Sscan(fields[utime]+" "+fields[utime+1], &user, &system); err != nil {
			return 0
		}
	}
	return (user + system) / perSecond
}

// wait waits for the next tick. The error says that the sink ended by itself, or ctx did.
func (p *process) wait(ctx context.Context, tick <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.done:
		return fmt.Errorf("%s ended by itself: %w", p.name, errors.Join(p.err, errors.New("not told to")))
	case <-tick:
		return nil
	}
}

func (p *process) logTail() []byte {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	const most = 4096
	return log[max(0, len(log)-most):]
}
