package main

import (
	"context"
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"auditsink/config"
	"auditsink/internal/notify"
	"auditsink/metrics"
)

// lastNotices is for how long a worker that stops waits for the webhook to take what is left.
const lastNotices = 5 * time.Second

// alerting looks at the alert rules every AUDITSINK_ALERT_INTERVAL, and tells log, metrics and webhook.
type alerting struct {
	interval time.Duration
	alerts   *metrics.Alerts
	metrics  *metrics.Metrics
	webhook  *notify.Webhook // nil where there is none
	log      *zap.Logger
}

func newAlerting(cfg config.Config, m *metrics.Metrics, log *zap.Logger) (*alerting, error) {
	rules, err := alertRules(cfg)
	if err != nil {
		return nil, err
	}
	a := &alerting{interval: cfg.AlertInterval, alerts: metrics.NewAlerts(m, rules), metrics: m, log: log}
	if cfg.AlertWebhookURL == "" {
		return a, nil
	}
	if cfg.AlertWebhookKey == "" {
		log.Warn("what goes to the webhook is not signed: set AUDITSINK_ALERT_WEBHOOK_KEY, so that its receiver knows it is ours")
	}
	a.webhook, err = notify.New(notify.Options{
		URL: cfg.AlertWebhookURL.Reveal(), Key: cfg.AlertWebhookKey.Reveal(),
		Group: cfg.KafkaGroup, Worker: owner(), Version: version, Metrics: m, Log: log,
	})
	return a, err
}

// alertRules are the rules by the settings. The error is a *config.Error where the rules file can't be used.
func alertRules(cfg config.Config) ([]metrics.Rule, error) {
	rules := metrics.Rules()
	for i := range rules {
		if stale := 3 * cfg.MaintenanceInterval.Seconds(); rules[i].Name == metrics.AlertMaintenanceStale && stale > rules[i].Threshold {
			rules[i].Threshold = stale // rounds are to be that far apart
		}
	}
	if cfg.AlertRulesFile == "" {
		return rules, nil
	}
	problem := func(causes ...string) error {
		e := &config.Error{}
		for _, cause := range causes {
			e.Problems = append(e.Problems, config.Problem{
				Variable: config.Prefix + "ALERT_RULES_FILE", Value: cfg.AlertRulesFile, Cause: cause, Remedy: "docs/alerts.md says what there is to set.",
			})
		}
		return e
	}
	content, err := os.ReadFile(cfg.AlertRulesFile)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err // the path is shown already
		}
		return nil, problem("can't be read: " + err.Error())
	}
	rules, err = metrics.ParseRules(content, rules)
	var wrong *metrics.RulesError
	if errors.As(err, &wrong) {
		var causes []string
		for _, fault := range wrong.Faults {
			causes = append(causes, "has a fault: "+fault.String())
		}
		return nil, problem(causes...)
	}
	return rules, err
}

// run judges until ctx ends. Then it takes back what it told of this worker alone, and gives the webhook a moment to take what is left.
func (a *alerting) run(ctx context.Context) {
	if a.webhook != nil {
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		defer end()
		go a.webhook.Run(life)
		defer func() {
			late := time.AfterFunc(lastNotices, end)
			defer late.Stop()
			a.webhook.Close()
		}()
	}
	tick := time.NewTicker(a.interval)
	defer tick.Stop()
	for failing := false; ; {
		sample, err := a.metrics.Sample(time.Now())
		if err == nil {
			a.tell(a.alerts.Judge(sample))
		} else if !failing {
			a.log.Error("the alert rules can't be judged, trying again", zap.Error(err))
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			a.tell(a.alerts.Leave(time.Now()))
			return
		case <-tick.C:
		}
	}
}

func (a *alerting) tell(notices []metrics.Notice) {
	for _, n := range notices {
		fields := []zap.Field{zap.String("alert", n.Rule.Name), zap.Float64("value", n.Value), zap.Float64("threshold", n.Rule.Threshold), zap.Time("since", n.Since)}
		switch {
		case n.Before: // nothing has changed: it is for those whom another worker told
		case !n.Firing:
			a.log.Info("alert resolved", append(fields, zap.Bool("since the worker stops", n.Left))...)
		case n.Rule.Severity == metrics.Critical:
			a.log.Error("alert: "+n.Rule.Summary, append(fields, zap.String("do", n.Rule.Remedy))...)
		default:
			a.log.Warn("alert: "+n.Rule.Summary, append(fields, zap.String("do", n.Rule.Remedy))...)
		}
		if a.webhook != nil {
			a.webhook.Send(n)
		}
	}
}
