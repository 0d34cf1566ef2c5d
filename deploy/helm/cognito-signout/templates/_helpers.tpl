{{- define "cognito-signout.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "cognito-signout.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "cognito-signout.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "cognito-signout.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "cognito-signout.selector" -}}
app.kubernetes.io/name: {{ include "cognito-signout.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cognito-signout.labels" -}}
{{ include "cognito-signout.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "cognito-signout.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "cognito-signout.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "cognito-signout.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "cognito-signout.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "cognito-signout.fullname" .)) }}
{{- end }}

{{- define "cognito-signout.policyConfigMap" -}}
{{- if .Values.policy.existingConfigMap }}
{{- .Values.policy.existingConfigMap }}
{{- else if .Values.policy.content }}
{{- printf "%s-policy" (include "cognito-signout.fullname" .) }}
{{- end }}
{{- end }}

{{/* What would be dangerous, or could not work, is not rendered. */}}
{{- define "cognito-signout.validate" -}}
{{- $policy := include "cognito-signout.policyConfigMap" . }}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) (not .Values.tls.certificate.create) }}
{{- fail "TLS needs a certificate: set tls.secretName, or tls.certificate.create with an issuerRef. Without TLS: tls.enabled=false and insecure=true." }}
{{- end }}
{{- if and .Values.tls.certificate.create (not .Values.tls.certificate.issuerRef.name) }}
{{- fail "tls.certificate.create needs tls.certificate.issuerRef.name." }}
{{- end }}
{{- if and (not .Values.insecure) (not .Values.tls.enabled) }}
{{- fail "Without TLS everybody on the way reads and changes calls: set insecure=true if the network may be trusted with that." }}
{{- end }}
{{- if and (not .Values.insecure) (not $policy) }}
{{- fail "Without a policy everybody who gets a connection can end everybody's sessions: set policy.content or policy.existingConfigMap, or insecure=true." }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas." }}
{{- end }}
{{- end }}
