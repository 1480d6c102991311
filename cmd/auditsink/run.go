package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"auditsink/config"
)

func newRunCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run a worker: take events from Kafka and store them, until SIGTERM",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Kafka, config.Topics, config.Postgres)
			if err != nil {
				return err
			}
			log, level, err := newLogger(cfg)
			if err != nil {
				return err
			}
			defer log.Sync() //nolint:errcheck // standard error has nothing to sync
			for _, stranger := range config.Strangers() {
				log.Warn("unknown variable", zap.Stringer("problem", stranger))
			}
			return runWorker(cmd.Context(), cfg, log, level, func(addr string) {
				log.Info("answering HTTP", zap.String("metrics", "http://"+addr+"/metrics"))
			})
		},
	}
}

// newLogger logs to standard error as the settings say, from the level on that it returns, which may be changed later. A flood of lines that are alike is thinned
// out, in either format: see flood.
func newLogger(cfg config.Config) (*zap.Logger, zap.AtomicLevel, error) {
	z := zap.NewProductionConfig()
	if cfg.LogFormat == "console" {
		z = zap.NewDevelopmentConfig()
		z.Development = false
	}
	z.Sampling = nil
	level, err := zapcore.ParseLevel(cfg.LogLevel)
	if err != nil {
		return nil, z.Level, fmt.Errorf("make the log: %w", err)
	}
	z.Level.SetLevel(level)
	z.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	z.DisableStacktrace = true
	log, err := z.Build(thin())
	if err != nil {
		return nil, z.Level, fmt.Errorf("make the log: %w", err)
	}
	return log, z.Level, nil
}
