package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errPortTaken is a start that failed because another program has the port.
var errPortTaken = errors.New("the port is taken")

// stopGrace is how long a server may take to stop by itself.
const stopGrace = 30 * time.Second

// process is a server that runs as a child of this process and dies with it.
type process struct {
	name    string
	pid     int
	logPath string
	logFrom int64         // where in the log this run of the server begins
	done    chan struct{} // closed when the child has ended
	err     error         // how it ended; written before done is closed

	guard *guard // not nil while the process is paused
}

// startProcess starts a server whose output goes to the end of the file at logPath.
//
// The kernel sends the parent-death signal when the thread that started the child ends, not the
// process (prctl(2)), so the goroutine that waits for the child keeps its thread until then.
func startProcess(cmd *exec.Cmd, logPath string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close() //nolint:errcheck // the child has its own handle; this one writes nothing
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setpgid = true // a ^C in the terminal is for the tests, who then stop the servers

	info, err := log.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	p := &process{
		name: filepath.Base(cmd.Path), logPath: logPath, logFrom: info.Size(), done: make(chan struct{}),
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	return p, nil
}

// ready polls try until it succeeds, the server ends, or ctx does; then the log's end is in the error.
// A server that did not get ready is killed.
func (p *process) ready(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("the server ended: %w", p.exit()))
		case <-ctx.Done():
		}
	}()
	portTaken := func() bool { return strings.Contains(p.logTail(), "Address already in use") }
	err := poll(ctx, 50*time.Millisecond, func() error {
		err := try(ctx)
		if err != nil && portTaken() {
			cancel(nil) // Kafka would take half a minute to end
		}
		return err
	})
	if err != nil {
		if portTaken() {
			err = errors.Join(errPortTaken, err)
		}
		return errors.Join(fmt.Errorf("%s did not get ready: %w; its log ends:\n%s", p.name, err, p.logTail()), p.kill())
	}
	return nil
}

// exit says how an ended server ended. It is never nil: no server should end by itself.
func (p *process) exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends a signal to the server itself, not to its children.
func (p *process) signal(sig syscall.Signal) error {
	if !p.running() {
		return fmt.Errorf("%s does not run: %w", p.name, p.exit())
	}
	if err := syscall.Kill(p.pid, sig); err != nil {
		return fmt.Errorf("send %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// stop asks the server to stop and waits for it. One that takes too long is killed, which is an error.
func (p *process) stop(sig syscall.Signal) error {
	if !p.running() {
		return nil
	}
	if err := p.unpause(); err != nil {
		return err
	}
	if err := p.signal(sig); err != nil {
		return err
	}
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return errors.Join(
			fmt.Errorf("%s ignored %v for %v; its log ends:\n%s", p.name, sig, stopGrace, p.logTail()),
			p.kill())
	}
}

// kill ends the server and all its children at once, as a power cut does, and waits until they are gone.
func (p *process) kill() error {
	if !p.running() {
		return p.unpause()
	}
	// A stopped parent neither starts new children nor sees the old ones go.
	family, err := p.freeze()
	if err != nil {
		return err
	}
	for _, pid := range family {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill %s: %w", p.name, err)
		}
	}
	<-p.done
	// Postgres refuses to start again while a process of the old server holds its shared memory.
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	for _, pid := range family {
		if err := poll(ctx, time.Millisecond, func() error { return gone(pid) }); err != nil {
			return fmt.Errorf("kill %s: %w", p.name, err)
		}
	}
	return p.unpause()
}

// pause stops the server and its children where they are, as a frozen machine does.
func (p *process) pause() error {
	if p.guard != nil {
		return fmt.Errorf("%s is paused already", p.name)
	}
	family, err := p.freeze()
	if err != nil {
		return err
	}
	p.guard, err = startGuard(family)
	if err != nil {
		return errors.Join(err, continueAll(family))
	}
	return nil
}

// unpause lets a paused server go on. It does nothing to one that runs.
func (p *process) unpause() error {
	if p.guard == nil {
		return nil
	}
	err := p.guard.release()
	p.guard = nil
	return err
}

// freeze stops the server and then its children and theirs, and returns all their process IDs. Postgres
// gives every backend a process group of its own, so that signalling a group would not reach them.
func (p *process) freeze() (family []int, err error) {
	if !p.running() {
		return nil, fmt.Errorf("%s does not run: %w", p.name, p.exit())
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("freeze %s: %w", p.name, err), continueAll(family))
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	// A generation at a time, each told at once: on a busy machine every wait for a process is a wait for a core.
	for next := []int{p.pid}; len(next) > 0; {
		family = append(family, next...)
		for _, pid := range next {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
				return family, err
			}
		}
		// Only a parent that has stopped starts no more children.
		for _, pid := range next {
			if err := poll(ctx, time.Millisecond, func() error { return halted(pid) }); err != nil {
				return family, err
			}
		}
		if next, err = childrenOf(next); err != nil {
			return family, err
		}
	}
	return family, nil
}

// childrenOf lists the processes whose parent is one of the given.
func childrenOf(parents []int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var children []int
	for _, path := range stats {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		if _, parent, ok := statusOf(child); ok && slices.Contains(parents, parent) {
			children = append(children, child)
		}
	}
	return children, nil
}

// statusOf returns a process's state and its parent, see proc_pid_stat(5). There is none when it ended.
func statusOf(pid int) (state string, parent int, ok bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	// The second field is the name in parentheses, which may itself contain any character.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err == nil
}

// gone fails while a process has not ended. A zombie has: it holds no memory and no file.
func gone(pid int) error {
	if state, _, ok := statusOf(pid); ok && state != "Z" && state != "X" {
		return fmt.Errorf("process %d is still in state %s", pid, state)
	}
	return nil
}

// halted fails while a process may still do something.
func halted(pid int) error {
	if state, _, ok := statusOf(pid); ok && state != "T" && state != "t" && state != "Z" && state != "X" {
		return fmt.Errorf("process %d is still in state %s", pid, state)
	}
	return nil
}

// guard is a shell that continues paused processes when its standard input ends: when release is
// called, or when this process dies. Without it the backends of a paused Postgres would stay for
// ever, since they end only when they run and see that their server is gone.
type guard struct {
	cmd   *exec.Cmd
	input io.Closer
}

func startGuard(pids []int) (*guard, error) {
	arguments := []string{"-c", `read -r _; kill -CONT "$@" 2>/dev/null; :`, "guard"}
	for _, pid := range pids {
		arguments = append(arguments, strconv.Itoa(pid))
	}
	cmd := exec.CommandContext(context.Background(), "/bin/sh", arguments...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has to outlive a ^C
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("guard paused processes: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guard paused processes: %w", err)
	}
	return &guard{cmd, input}, nil
}

func (g *guard) release() error {
	if err := errors.Join(g.input.Close(), g.cmd.Wait()); err != nil {
		return fmt.Errorf("continue paused processes: %w", err)
	}
	return nil
}

func continueAll(pids []int) error {
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// logTail returns the end of what this run of the server has logged, for an error.
func (p *process) logTail() string {
	log, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return lastBytes(log[min(p.logFrom, int64(len(log))):])
}

func lastBytes(output []byte) string {
	const most = 4096
	return strings.TrimSpace(string(output[max(0, len(output)-most):]))
}
