{{- define "sluice.name" -}}
{{ .Values.nameOverride | default "sluice" }}
{{- end }}

{{- define "sluice.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "sluice.name" .) }}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: service-proxy
{{- end }}

{{- define "sluice.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What this chart sets, and over it .Values.config. */}}
{{- define "sluice.config" -}}
{{- $config := dict
  "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
  "kind" "KubeProxyConfiguration"
  "mode" .Values.mode
  "clusterCIDR" .Values.clusterCIDR
  "logging" (dict "format" .Values.logging.format "verbosity" .Values.logging.verbosity)
}}
{{- if .Values.kubeconfig.configMap }}
{{- $_ := set $config "clientConnection" (dict "kubeconfig" "/etc/sluice/kubeconfig.conf") }}
{{- end }}
{{- if .Values.metrics.bindAddress }}
{{- $_ := set $config "metricsBindAddress" .Values.metrics.bindAddress }}
{{- else if or .Values.metrics.podMonitor.enabled .Values.metrics.serviceMonitor.enabled }}
{{- $_ := set $config "metricsBindAddress" "0.0.0.0:10249" }}
{{- end }}
{{- toYaml (mustMergeOverwrite $config (deepCopy .Values.config)) }}
{{- end }}

{{- define "sluice.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end }}

{{- define "sluice.metricsPort" -}}
{{- $config := include "sluice.config" . | fromYaml }}
{{- include "sluice.port" ($config.metricsBindAddress | default ":10249") }}
{{- end }}

{{- define "sluice.scrape" -}}
interval: {{ .Values.metrics.interval }}
relabelings:
  - targetLabel: job
    replacement: {{ .Values.metrics.jobName }}
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: instance
{{- end }}
