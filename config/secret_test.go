package config

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestSecretNeverShows(t *testing.T) {
	const value = "hunter2"
	cfg := Default()
	cfg.PostgresURL, cfg.KafkaSASLPassword, cfg.EventSignatureKey = value, value, value

	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%U", "% x", "%10s"} {
		for _, arg := range []any{cfg.PostgresURL, &cfg.PostgresURL, cfg, &cfg, []Secret{value}, map[Secret]Secret{value: value}} {
			shown := fmt.Sprintf(verb, arg)
			require.NotContains(t, shown, value, verb)
			require.NotContains(t, shown, fmt.Sprintf("%x", value), verb)
			require.NotContains(t, shown, "68 75 6e", verb)
		}
	}
	require.Equal(t, "(set)", fmt.Sprint(cfg.PostgresURL))
	require.Equal(t, "(set)", fmt.Sprintf("%#v", cfg.PostgresURL))
	require.Empty(t, fmt.Sprint(Secret("")))
	require.NotContains(t, fmt.Errorf("connect with %v", cfg.PostgresURL).Error(), value)
	require.NotContains(t, errors.New(cfg.PostgresURL.String()).Error(), value)

	encoded, err := json.Marshal([]any{cfg.PostgresURL, cfg})
	require.NoError(t, err)
	require.NotContains(t, string(encoded), value)
	require.Contains(t, string(encoded), "(set)")
	encoded, err = xml.Marshal(cfg.PostgresURL)
	require.NoError(t, err)
	require.NotContains(t, string(encoded), value)

	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "secret", cfg.PostgresURL, "all", cfg)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "secret", cfg.PostgresURL, "all", cfg)
	for _, encoder := range []zapcore.Encoder{
		zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()),
		zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()),
	} {
		zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&log), zapcore.DebugLevel)).
			Info("m", zap.Any("secret", cfg.PostgresURL), zap.Stringer("s", cfg.PostgresURL), zap.Any("all", cfg), zap.Reflect("r", &cfg))
	}
	require.NotContains(t, log.String(), value)
	require.Contains(t, log.String(), "(set)")

	require.Equal(t, value, cfg.PostgresURL.Reveal())
}
