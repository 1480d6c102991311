package notify

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/event"
	"auditsink/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver answers POSTs as it is told, and keeps what came.
type receiver struct {
	answer func(attempt int, p payload) *http.Response // nil: the network fails

	mu   sync.Mutex // guards what follows
	came []delivery
}

type delivery struct {
	payload
	at     time.Time
	header http.Header
	body   []byte
}

// RoundTrip implements http.RoundTripper.
func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	d := delivery{at: time.Now(), header: req.Header, body: body}
	if err := json.Unmarshal(body, &d.payload); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came = append(r.came, d)
	if resp := r.answer(len(r.came), d.payload); resp != nil {
		resp.Body = http.NoBody
		return resp, nil
	}
	return nil, errors.New("connection refused")
}

func (r *receiver) deliveries() []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.came)
}

// said are the alerts and statuses in the order in which they came.
func (r *receiver) said() (all []string) {
	for _, d := range r.deliveries() {
		all = append(all, d.Alert+" "+d.Status)
	}
	return all
}

func status(code int) *http.Response { return &http.Response{StatusCode: code, Header: http.Header{}} }

// bed is a webhook under test.
type bed struct {
	*Webhook
	*receiver
	m    *metrics.Metrics
	logs *observer.ObservedLogs
}

const secretURL = "https://user:hunter2@hooks.example/s3cret?token=t0ken"

// open starts a webhook whose receiver answers so.
func open(t *testing.T, answer func(attempt int, p payload) *http.Response) *bed {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	b := &bed{receiver: &receiver{answer: answer}, m: metrics.New("v1", event.Reasons()), logs: logs}
	var err error
	b.Webhook, err = New(Options{URL: secretURL, Key: "key", Group: "g", Worker: "host/1", Version: "v9", Metrics: b.m, Log: zap.New(core)})
	require.NoError(t, err)
	b.client.Transport = b.receiver
	go b.Run(t.Context())
	return b
}

func (b *bed) count(t *testing.T, result string) float64 {
	t.Helper()
	s, err := b.m.Sample(time.Now())
	require.NoError(t, err)
	return s.Sum("alert_notifications_total", metrics.Label{Name: "result", Value: result})
}

func rule(name string) metrics.Rule {
	rules := metrics.Rules()
	return rules[slices.IndexFunc(rules, func(r metrics.Rule) bool { return r.Name == name })]
}

func firing(name string) metrics.Notice {
	return metrics.Notice{Rule: rule(name), Firing: true, Value: 2, Since: time.Now().Add(-time.Minute), At: time.Now()}
}

func resolved(n metrics.Notice) metrics.Notice {
	n.Firing, n.At = false, n.At.Add(time.Second)
	return n
}

// TestPayload: what is sent, and that it can be proved to be ours.
func TestPayload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, func(int, payload) *http.Response { return status(204) })
		n := firing("lane_halted")
		b.Send(n)
		b.Send(firing("partitions_future"))
		synctest.Wait()
		came := b.deliveries()
		require.Len(t, came, 2)
		d := came[0]
		require.JSONEq(t, `{"alert":"lane_halted","status":"firing","severity":"critical","summary":"lanes stand still until somebody acts",
			"remedy":"`+"`auditsink lanes list` says why; mend that, then `auditsink lanes accept`"+`","value":2,"threshold":0,
			"since":"1999-12-31T23:59:00Z","at":"2000-01-01T00:00:00Z","worker":"host/1","key":"auditsink/g/lane_halted/host/1","id":"`+d.ID+`","version":"v9"}`, string(d.body))
		require.Equal(t, "auditsink/g/partitions_future", came[1].Key, "the same from every worker")
		require.NotEqual(t, d.ID, came[1].ID)
		require.Equal(t, d.ID, d.header.Get("Idempotency-Key"))
		require.Equal(t, "application/json", d.header.Get("Content-Type"))
		require.Equal(t, "946684800", d.header.Get("Auditsink-Timestamp"))
		require.Equal(t, "sha256="+Sign("key", "946684800", d.body), d.header.Get("Auditsink-Signature"))
		require.NotEqual(t, Sign("key", "946684801", d.body), Sign("key", "946684800", d.body), "a replay can't claim another time")
		b.Close()
		require.EqualValues(t, 2, b.count(t, "sent"))
		require.Zero(t, b.logs.Len())
	})
}

// TestSign holds the signature against one that was computed by openssl.
func TestSign(t *testing.T) {
	// printf '1764043200.{"a":1}' | openssl dgst -sha256 -hmac secret
	require.Equal(t, "6f727622a01057da65418246e6563420917ee407f91b0a14bc7204555d757af7", Sign("secret", "1764043200", []byte(`{"a":1}`)))
}

// TestRetry: what passes is tried again with growing pauses, in order, each with the same ID and a timestamp of its own.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, func(attempt int, _ payload) *http.Response {
			switch attempt {
			case 1:
				return nil
			case 2:
				return status(503)
			case 3:
				return status(429)
			case 4:
				return status(408)
			}
			return status(200)
		})
		first := firing("lane_halted")
		b.Send(first)
		b.Send(resolved(first))
		b.Send(firing("gaps"))
		time.Sleep(time.Minute)
		require.Equal(t, []string{
			"lane_halted firing", "lane_halted firing", "lane_halted firing", "lane_halted firing", "lane_halted firing", "lane_halted resolved", "gaps firing",
		}, b.said())
		came := b.deliveries()
		for i, d := range came[:5] {
			require.Equal(t, came[0].ID, d.ID)
			require.Equal(t, string(came[0].body), string(d.body))
			require.Equal(t, "sha256="+Sign("key", d.header.Get("Auditsink-Timestamp"), d.body), d.header.Get("Auditsink-Signature"))
			if i > 0 {
				require.Greater(t, d.at.Sub(came[i-1].at), 200*time.Millisecond)
			}
		}
		require.NotEqual(t, came[0].header.Get("Auditsink-Timestamp"), came[4].header.Get("Auditsink-Timestamp"))
		require.Equal(t, came[0].Key, came[5].Key, "what is resolved is what was raised")
		require.NotEqual(t, came[0].ID, came[5].ID)
		b.Close()
		require.EqualValues(t, 3, b.count(t, "sent"))
		require.Zero(t, b.count(t, "failed"))
		require.Equal(t, 1, b.logs.Len(), "told once")
	})
}

// TestRefused: what is refused for good isn't tried again, and keeps nothing else waiting. A redirect isn't followed.
func TestRefused(t *testing.T) {
	for _, code := range []int{400, 401, 404, 410, 301, 307} {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, func(attempt int, _ payload) *http.Response {
				if attempt == 1 {
					resp := status(code)
					resp.Header.Set("Location", "https://elsewhere.example/")
					return resp
				}
				return status(200)
			})
			b.Send(firing("lane_halted"))
			b.Send(firing("gaps"))
			synctest.Wait()
			require.Equal(t, []string{"lane_halted firing", "gaps firing"}, b.said())
			b.Close()
			require.EqualValues(t, 1, b.count(t, "failed"))
			require.EqualValues(t, 1, b.count(t, "sent"))
		})
	}
}

// TestRetryAfter: a receiver that asks for time gets it, within bounds.
func TestRetryAfter(t *testing.T) {
	for asked, want := range map[string]time.Duration{"20": 20 * time.Second, "86400": longestPause, "-5": 0, "soon": 0} {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, func(attempt int, _ payload) *http.Response {
				if attempt > 1 {
					return status(200)
				}
				resp := status(429)
				resp.Header.Set("Retry-After", asked)
				return resp
			})
			b.Send(firing("gaps"))
			time.Sleep(2 * longestPause)
			came := b.deliveries()
			require.Len(t, came, 2)
			if pause := came[1].at.Sub(came[0].at); want > 0 {
				require.Equal(t, want, pause)
			} else {
				require.Less(t, pause, 2*time.Second)
			}
			b.Close()
		})
	}
}

// TestGivenUp: a receiver that is away for long costs notices, not memory or judging; then it goes on.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := true
		var mu sync.Mutex
		b := open(t, func(int, payload) *http.Response {
			mu.Lock()
			defer mu.Unlock()
			if away {
				return nil
			}
			return status(200)
		})
		began := time.Now()
		const more = 10
		for range queued + more {
			b.Send(firing("gaps"))
		}
		require.Zero(t, time.Since(began), "sending never waits")
		time.Sleep(time.Second)
		require.GreaterOrEqual(t, b.count(t, "failed"), float64(more-1), "one is under way beside those that wait")
		time.Sleep(patience + longestPause)
		require.EqualValues(t, queued+more, b.count(t, "failed"))
		mu.Lock()
		away = false
		mu.Unlock()
		b.Send(firing("lane_halted"))
		synctest.Wait()
		require.EqualValues(t, 1, b.count(t, "sent"))
		b.Close()
	})
}

// TestClose: a worker that stops delivers what is queued, tries what fails again soon, and waits for a receiver that is away no longer than it is told to.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		b := open(t, func(int, payload) *http.Response {
			attempts++
			if attempts < 10 { // the pause is many seconds long by then
				return nil
			}
			return status(200)
		})
		b.Send(firing("gaps"))
		for b.Send(firing("lane_halted")); len(b.deliveries()) < 8; {
			time.Sleep(time.Second)
		}
		stopped := time.Now()
		b.Close()
		require.Less(t, time.Since(stopped), time.Second)
		require.Equal(t, []string{"gaps firing", "lane_halted firing"}, b.said()[9:])
		require.EqualValues(t, 2, b.count(t, "sent"))

		ctx, cancel := context.WithCancel(t.Context())
		b = open(t, func(int, payload) *http.Response { return nil })
		away, err := New(b.options)
		require.NoError(t, err)
		away.client.Transport = b.receiver
		go away.Run(ctx)
		away.Send(firing("gaps"))
		away.Send(firing("lane_halted"))
		stopped = time.Now()
		time.AfterFunc(5*time.Second, cancel)
		away.Close()
		require.Equal(t, 5*time.Second, time.Since(stopped))
		require.Greater(t, len(b.deliveries()), 10)
		require.EqualValues(t, 2, b.count(t, "failed"))
		b.Close()
	})
}

// TestCancelled: at the end of the context nothing more is tried, and what is lost is counted.
func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := metrics.New("v1", event.Reasons())
		w, err := New(Options{URL: secretURL, Metrics: m, Log: zap.NewNop()})
		require.NoError(t, err)
		w.client.Transport = &receiver{answer: func(int, payload) *http.Response { return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		go w.Run(ctx)
		w.Send(firing("gaps"))
		w.Send(firing("gaps"))
		synctest.Wait()
		cancel()
		w.Close()
		s, err := m.Sample(time.Now())
		require.NoError(t, err)
		require.EqualValues(t, 2, s.By("alert_notifications_total", "result")["failed"])
	})
}

// TestNoSecrets: neither what fails here nor what a real client says of a URL shows more of it than its host.
func TestNoSecrets(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	for _, address := range []string{"http://user:hunter2@" + host + "/s3cret?token=t0ken", "http://hunter2.s3cret.t0ken.invalid\x00/"} {
		m := metrics.New("v1", event.Reasons())
		w, err := New(Options{URL: address, Metrics: m, Log: zap.New(core)})
		if err != nil {
			require.NotContains(t, err.Error(), "hunter2")
			continue
		}
		w.Send(firing("gaps"))
		close(w.stopping)
		close(w.queue)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		w.Run(ctx)
		cancel()
	}
	require.Positive(t, logs.Len())
	for _, entry := range logs.All() {
		text := entry.Message
		for _, f := range entry.Context {
			if err, ok := f.Interface.(error); ok {
				text += " " + err.Error()
			}
			text += " " + f.String
		}
		for _, secret := range []string{"hunter2", "s3cret", "t0ken"} {
			require.NotContains(t, text, secret)
		}
		require.Contains(t, text, host)
	}
}
