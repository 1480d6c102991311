package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// settings are a worker's environment variables, named without their prefix.
type settings map[string]string

// with returns the settings with others in place of, or beside, those of the same name.
func (s settings) with(more settings) settings {
	all := settings{}
	for _, from := range []settings{s, more} {
		for k, v := range from {
			all[k] = v
		}
	}
	return all
}

// process is a running program, a child of this one that dies with it.
type process struct {
	pid  int
	log  output
	done chan struct{} // closed when it has ended
	// state is how it ended, to be read after done.
	state *os.ProcessState
}

// output is what a process has written so far.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// tail is the end of what was written, for a report.
func (o *output) tail() string {
	const most = 6000
	text := o.String()
	return text[max(0, len(text)-most):]
}

// startProcess starts the program with these settings and no others; failpoint arms one where it isn't empty.
func startProcess(path string, s settings, failpoint string, args ...string) (*process, error) {
	p := &process{done: make(chan struct{})}
	cmd := exec.CommandContext(context.Background(), path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for k, v := range s {
		cmd.Env = append(cmd.Env, "AUDITSINK_"+k+"="+v)
	}
	if failpoint != "" {
		cmd.Env = append(cmd.Env, "FAILPOINT="+failpoint)
	}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	// In a process group of its own, a ^C for the tests doesn't reach it first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that started the child ends, so that thread is kept (prctl(2)).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait() // whoever waits looks at the state
		p.state = cmd.ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends a signal. It does nothing to a process that has ended.
func (p *process) signal(sig syscall.Signal) error {
	if !p.running() {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %v to worker %d: %w", sig, p.pid, err)
	}
	return nil
}

// killed reports whether it has ended by SIGKILL, whoever sent it.
func (p *process) killed() bool {
	if p.running() {
		return false
	}
	status, ok := p.state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// frozen reports whether it is stopped, see proc_pid_stat(5).
func (p *process) frozen() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return false
	}
	// The second field is the name in parentheses, which may itself contain any character.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return strings.HasPrefix(rest, "T")
}

var address = regexp.MustCompile(`"metrics":"(http://[^"]+)/metrics"`)

// pages asks for pages; connections aren't kept, for a page is asked of many.
var pages = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// page asks for a page of a worker.
func (p *process) page(ctx context.Context, path string) (status int, body string, err error) {
	found := address.FindStringSubmatch(p.log.String())
	if found == nil {
		return 0, "", errors.New("it doesn't answer HTTP yet")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, found[1]+path, nil)
	if err != nil {
		return 0, "", fmt.Errorf("ask for %s: %w", path, err)
	}
	resp, err := pages.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("ask for %s: %w", path, err)
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return 0, "", fmt.Errorf("read %s: %w", path, err)
	}
	return resp.StatusCode, string(text), nil
}

// metric adds up the series of a metric whose labels contain a text; any will do where that is empty. It is -1 while there is no answer.
func (p *process) metric(ctx context.Context, name, label string) (total float64) {
	status, text, err := p.page(ctx, "/metrics")
	if err != nil || status != http.StatusOK {
		return -1
	}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "auditsink_"+name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' || !strings.Contains(rest, label) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err != nil {
			return -1
		}
		total += v
	}
	return total
}

// kill ends it at once and waits until it is gone.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}
