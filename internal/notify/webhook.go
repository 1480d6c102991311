// Package notify sends what alerts tell to a webhook.
package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"auditsink/metrics"
)

const (
	// queued is how many notices may wait. There are a dozen alerts, and each makes two in its cool-down.
	queued = 256
	// attemptTimeout bounds one POST.
	attemptTimeout = 10 * time.Second
	// patience is how old a notice becomes before it is given up.
	patience = 15 * time.Minute
	// longestPause is between two attempts.
	longestPause = time.Minute
	// lastPause is between two attempts while the worker stops.
	lastPause = 200 * time.Millisecond
)

// Options say where to send, and as whom.
type Options struct {
	// URL receives the POSTs. It may hold a secret, and is in no log but for its host.
	URL string
	// Key signs what is sent; empty leaves it unsigned.
	Key string
	// Group is the consumer group: what all its workers have in common has one key.
	Group string
	// Worker and Version name the sender.
	Worker, Version string
	Metrics         *metrics.Metrics
	Log             *zap.Logger
}

// Webhook delivers notices in the order in which they were sent, each at least once or, after [patience] of failures, not at all. Its methods may be called from any
// goroutine; [Webhook.Send] must not be called after [Webhook.Close].
type Webhook struct {
	options  Options
	host     string
	client   *http.Client
	queue    chan notice
	stopping chan struct{} // closed when what is queued is to be delivered soon
	done     chan struct{} // closed when Run has ended
}

// New makes a webhook. Run must follow.
func New(o Options) (*Webhook, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, errors.New("the webhook's URL can't be read (AUDITSINK_ALERT_WEBHOOK_URL; it is not shown)") // err would show it
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck // it is one, unless somebody replaced it
	return &Webhook{
		options: o, host: u.Host, queue: make(chan notice, queued), stopping: make(chan struct{}), done: make(chan struct{}),
		client: &http.Client{
			Transport: transport, Timeout: attemptTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // what is signed goes where we were told, and nowhere else
		},
	}, nil
}

// notice is one to be delivered.
type notice struct {
	payload
	body  []byte
	begun time.Time
}

// payload is the JSON that is sent; docs/alerts.md describes it.
type payload struct {
	Alert     string         `json:"alert"`
	Status    string         `json:"status"` // firing or resolved
	Severity  metrics.Status `json:"severity"`
	Summary   string         `json:"summary"`
	Remedy    string         `json:"remedy"`
	Value     float64        `json:"value"`
	Threshold float64        `json:"threshold"`
	Since     time.Time      `json:"since"`
	At        time.Time      `json:"at"`
	Worker    string         `json:"worker"`
	Key       string         `json:"key"`
	ID        string         `json:"id"`
	Version   string         `json:"version"`
}

// payload is a notice as it is sent.
func (o Options) payload(n metrics.Notice) payload {
	p := payload{
		Alert: n.Rule.Name, Status: "resolved", Severity: n.Rule.Severity, Summary: n.Rule.Summary, Remedy: n.Rule.Remedy,
		Value: n.Value, Threshold: n.Rule.Threshold, Since: n.Since.UTC(), At: n.At.UTC(), Worker: o.Worker, Version: o.Version,
		Key: "auditsink/" + o.Group + "/" + n.Rule.Name,
	}
	if n.Firing {
		p.Status = "firing"
	}
	if n.Left {
		p.Summary += " (resolved in that the worker stops)"
	}
	if n.Before {
		p.Summary += " (a worker that starts finds it resolved)"
	}
	if !n.Rule.Everywhere {
		p.Key += "/" + o.Worker
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%d", p.Key, p.Worker, p.Status, p.At.UnixNano()))
	p.ID = hex.EncodeToString(sum[:16])
	return p
}

// Send queues a notice. It never blocks: where too many wait already, the notice is lost, which is logged and counted.
func (w *Webhook) Send(n metrics.Notice) {
	p := w.options.payload(n)
	body, err := json.Marshal(p)
	if err != nil {
		w.failed(p, err)
		return
	}
	select {
	case w.queue <- notice{payload: p, body: body, begun: time.Now()}:
	default:
		w.failed(p, fmt.Errorf("%d notices are waiting already", queued))
	}
}

// Run delivers until Close, or until ctx ends.
func (w *Webhook) Run(ctx context.Context) {
	defer close(w.done)
	defer w.client.CloseIdleConnections()
	for n := range w.queue {
		if err := w.deliver(ctx, n); err != nil {
			w.failed(n.payload, err)
			continue
		}
		w.options.Metrics.Notifications.WithLabelValues("sent").Inc()
	}
}

// Close has what is queued delivered soon, and returns when that is done or Run's context has ended.
func (w *Webhook) Close() {
	close(w.stopping)
	close(w.queue)
	<-w.done
}

func (w *Webhook) failed(p payload, err error) {
	w.options.Metrics.Notifications.WithLabelValues("failed").Inc()
	w.options.Log.Error("an alert was not delivered to the webhook", zap.String("alert", p.Alert), zap.String("status", p.Status), zap.String("host", w.host), zap.Error(err))
}

// deliver tries until it is taken or refused for good, until it is too old, or until ctx ends. While the worker stops it pauses for moments only.
func (w *Webhook) deliver(ctx context.Context, n notice) error {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = 500*time.Millisecond, longestPause
	for attempt := 1; ; attempt++ {
		err := w.post(ctx, n)
		var permanent *backoff.PermanentError
		if err == nil || errors.As(err, &permanent) {
			return err
		}
		pause := pauses.NextBackOff()
		var asked *backoff.RetryAfterError
		if errors.As(err, &asked) {
			pause = min(max(pause, asked.Duration), longestPause)
		}
		if time.Since(n.begun)+pause > patience {
			return fmt.Errorf("after %d attempts: %w", attempt, err)
		}
		if attempt == 1 {
			w.options.Log.Warn("an alert could not be delivered to the webhook, trying again", zap.String("alert", n.Alert), zap.String("host", w.host), zap.Error(err))
		}
		if !w.pause(ctx, pause) {
			return fmt.Errorf("the worker stops, after %d attempts: %w", attempt, err)
		}
	}
}

// pause waits before the next attempt. It returns false where there is to be none.
func (w *Webhook) pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-w.stopping:
	case <-ctx.Done():
	case <-time.After(d):
		return true
	}
	select { // stopping
	case <-ctx.Done():
		return false
	case <-time.After(min(d, lastPause)):
		return true
	}
}

// post sends it once. The error is a *backoff.PermanentError where a repeat would be answered the same.
func (w *Webhook) post(ctx context.Context, n notice) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.options.URL, bytes.NewReader(n.body))
	if err != nil {
		return backoff.Permanent(errors.New("the webhook's URL can't be used"))
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "auditsink/"+w.options.Version)
	req.Header.Set("Idempotency-Key", n.ID)
	req.Header.Set("Auditsink-Timestamp", at)
	if w.options.Key != "" {
		req.Header.Set("Auditsink-Signature", "sha256="+Sign(w.options.Key, at, n.body))
	}
	resp, err := w.client.Do(req)
	if err != nil {
		var shown *url.Error
		if errors.As(err, &shown) {
			err = shown.Err // without the URL
		}
		return err
	}
	// The rest of the answer is read so that the connection can be used again; it says nothing that we would do otherwise for.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	refused := fmt.Errorf("the webhook answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	if resp.StatusCode/100 != 5 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout {
		return backoff.Permanent(refused)
	}
	if seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After")); seconds > 0 { // a date, or nonsense, asks for nothing
		return fmt.Errorf("%w: %w", refused, backoff.RetryAfter(seconds))
	}
	return refused
}

// Sign is the signature of a body that is sent at a time, in seconds since 1970: HMAC-SHA256 of both with a point between them, in hex.
func Sign(key, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}
